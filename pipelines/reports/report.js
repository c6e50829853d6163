"use strict";

// Sorting: the button of a heading sorts its table. Rows without a value always come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    const isNumber = heading.dataset.kind === "number";
    button.addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending";
      const second = isNumber ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const compare = isNumber ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * compare(x, y);
      });
      body.append(...rows);
    });
  });
}

// Filtering: a part is shown if it matches all four fields.
const form = document.querySelector("form.filters");
const rows = [...document.querySelectorAll("#list tbody tr")];
const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

function filter() {
  const words = form.elements.text.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of rows) {
    const passes =
      ["product", "status", "verdict"].every((name) => {
        const wanted = form.elements[name].value;
        return wanted === "" || row.dataset[name] === wanted;
      }) && words.every((word) => texts.get(row).includes(word));
    row.hidden = !passes;
    shown += passes;
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} shown`;
  document.querySelector("p.none").hidden = shown > 0;
}

form.addEventListener("input", filter);
form.addEventListener("reset", () => {
  for (const heading of document.querySelectorAll("#list [aria-sort]")) heading.removeAttribute("aria-sort");
  document.querySelector("#list tbody").append(...rows); // in their first order
  setTimeout(filter); // after the browser has emptied the fields
});
form.addEventListener("submit", (event) => event.preventDefault());
filter(); // after a reload, the browser may have kept the fields
