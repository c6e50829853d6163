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

// Decisions: kept in this browser, and saved to a file that jobs.label takes.
const saving = document.querySelector("form.decisions");
const decidable = rows.filter((row) => row.dataset.image);
const key = `nightloupe.decisions.${saving.dataset.report}`;
const WORDS = { defect: "Defect", false_alarm: "False alarm", unsure: "Unsure" };

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* a browser may keep nothing for files; decisions then last as long as the page */ }
  return null;
}
const decisions = JSON.parse(stored(key) || "{}");

function showDecisions() {
  for (const button of document.querySelectorAll(".decide button")) {
    const row = button.closest("tr");
    button.setAttribute("aria-pressed", decisions[row.dataset.image]?.decision === button.dataset.decision);
  }
  const number = Object.keys(decisions).length;
  saving.querySelector("output").textContent = `${number} of ${decidable.length} decided`;
  saving.querySelector("button").disabled = number === 0;
}
for (const row of decidable) {
  const group = document.createElement("div");
  group.className = "decide";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", `Decision of ${row.querySelector(".name").textContent}`);
  for (const [decision, word] of Object.entries(WORDS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.decision = decision;
    button.textContent = word;
    button.addEventListener("click", () => {
      const { image, run } = row.dataset;
      if (decisions[image]?.decision === decision) delete decisions[image];
      else decisions[image] = { image_id: image, run_id: run, decision, decided_at: new Date().toISOString() };
      stored(key, JSON.stringify(decisions));
      showDecisions();
    });
    group.append(button);
  }
  row.lastElementChild.append(group);
}
saving.elements.who.value = stored("nightloupe.who") || "";
saving.addEventListener("submit", (event) => {
  event.preventDefault();
  const who = saving.elements.who.value.trim();
  stored("nightloupe.who", who);
  const content = { decisions: Object.values(decisions).map((each) => ({ ...each, who })) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `decisions-${saving.dataset.report}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
saving.hidden = decidable.length === 0;
showDecisions();

// Paper shows what the screen folds away or has not loaded yet.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  for (const image of document.images) image.loading = "eager";
});
