"use strict";
// Charts use the colours of the style sheet. Expressions are interpreted, because this page's policy forbids eval.
const options = {renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: {disableDefaultStyle: true}};
Promise.all([...document.querySelectorAll(".chart")].map((chart) =>
  vegaEmbed(chart.appendChild(document.createElement("div")), JSON.parse(chart.querySelector("script").textContent), options)
)).then(() => { document.body.dataset.drawn = "yes"; });
// Printing shows all sections.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
