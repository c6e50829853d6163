"use strict";

// Which parts of the list are shown.
const form = get("filters");
function filter() {
  const values = {};
  for (const [name, value] of new FormData(form)) if (value !== "") values[name] = value;
  const product = form.elements.product.selectedOptions[0];
  if (product && product.dataset.value !== undefined) values.product = product.dataset.value;
  return values;
}
function showLeftOut() {
  form.elements.false_alarms.value = "shown";
  form.elements.false_alarms.dispatchEvent(new Event("input", { bubbles: true }));
  form.elements.product.focus(); // the button goes
}
function choices(name, groups, isProduct) {
  for (const group of groups) {
    if (group.name === null && !isProduct) continue;
    const option = make("option", `${group.label} (${count(group.anomalous)} anomalous)`);
    option.value = isProduct ? `product:${group.name}` : group.name;
    if (isProduct && group.name !== null) option.dataset.value = group.name;
    form.elements[name].append(option);
  }
}
// A filter for each field of the paths' pattern, such as a line or a shift.
function addField(field) {
  const label = make("label", field.label), select = make("select"), all = make("option", "all");
  select.name = `field_${field.name}`;
  all.value = "";
  select.append(all);
  label.append(" ", select);
  form.elements.most_p.parentElement.before(label);
  choices(select.name, field.values);
}
form.addEventListener("input", (event) => {
  clearTimeout(form.waiting);
  offset = 0;
  form.waiting = setTimeout(() => work(showList), event.target.matches("select") ? 0 : 300);
});
form.addEventListener("reset", () => setTimeout(() => { offset = 0; work(showList); }));
form.addEventListener("submit", (event) => event.preventDefault());
