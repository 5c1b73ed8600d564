"""Union-find against connected components by repeated relabelling."""

from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.union_find import representatives

ITEMS = range(8)


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.sampled_from(ITEMS))))
def test_items_have_one_representative_where_pairs_connect_them(pairs):
    label = {item: item for item in ITEMS}
    for one, other in pairs:
        old, new = label[one], label[other]
        label = {item: new if known == old else known for item, known in label.items()}
    representative = representatives(pairs)
    for one in ITEMS:
        assert label[representative(one)] == label[one]
        for other in ITEMS:
            assert (representative(one) == representative(other)) == (label[one] == label[other])
