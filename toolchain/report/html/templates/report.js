"use strict";
// Charts keep the colours of the style sheet, and expressions are interpreted: this page's policy allows no eval.
const options = {renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: {disableDefaultStyle: true}};
Promise.all([...document.querySelectorAll(".chart")].map((place) =>
  vegaEmbed(place.appendChild(document.createElement("div")), JSON.parse(place.querySelector("script").textContent), options)
)).then(() => { document.body.dataset.drawn = "yes"; });
// Paper shows everything.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
