"use strict";

const SIZE = 60;
const WORDS = { defect: "defect", false_alarm: "false alarm", unsure: "unsure", undecided: "undecided" };
let offset = 0; // of the grid's page
let rows = []; // of the grid
let current = null; // the part that is shown, with its regions
let seen = 0; // decisions that the page knows of
let serverName = "";
const undone = []; // what decisions replaced, the last at the end

// Nothing from a table becomes markup: elements get text, never HTML.
function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}
function shape(tag, values) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  return element;
}
const count = (value) => value.toLocaleString("en");
const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
const digits = (value, most) => (value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: most }));
function nameOf(uri) {
  return uri.replace(/\/+$/, "").split(/[/#]/).pop() || uri;
}

async function ask(path, values, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  const query = new URLSearchParams(values || {});
  const answer = await fetch(`${path}?${query}`, options);
  const isJson = (answer.headers.get("Content-Type") || "").includes("json");
  const content = isJson ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(content.error);
  return content;
}

let fading = 0;
function tell(text, isBad = false) {
  get("told").textContent = text;
  get("toast").textContent = text;
  get("toast").className = isBad ? "toast on bad" : "toast on";
  clearTimeout(fading);
  fading = setTimeout(() => get("toast").classList.remove("on"), isBad ? 8000 : 2500);
}
// Work that a key or a click starts, one piece after the other, so that quick keys lose nothing.
let queue = Promise.resolve();
function work(task) {
  queue = queue.then(task).catch((error) => tell(error instanceof TypeError ? "The server does not answer; nothing was saved. Start it again and repeat." : error.message, true));
  return queue;
}

function showProgress(counts) {
  get("decided").textContent = `${count(counts.decided)} of ${count(counts.listed)} decided`;
  get("bar").max = Math.max(counts.listed, 1);
  get("bar").value = counts.decided;
}

// The grid.
function pictureOf(row, values) {
  return `/picture?${new URLSearchParams({ id: row.image_id, v: row.run_id, ...values })}`;
}
function ring(row) {
  const at = { cx: row.peak_x + 0.5, cy: row.peak_y + 0.5, r: 0.1 * Math.min(row.width, row.height) };
  return [shape("circle", { ...at, class: "halo" }), shape("circle", at)];
}
function card(row) {
  const item = make("li"), link = make("a"), frame = make("div", undefined, "frame"), text = make("div", undefined, "text");
  link.href = `#part=${encodeURIComponent(row.image_id)}`;
  link.dataset.id = row.image_id;
  if (row.status === "ok") {
    const image = make("img");
    image.alt = "";
    image.loading = "lazy";
    image.src = pictureOf(row, { side: 320 });
    image.onerror = () => image.replaceWith(make("span", "no picture"));
    const marks = shape("svg", { viewBox: `0 0 ${row.width} ${row.height}`, "aria-hidden": "true" });
    marks.append(...ring(row));
    frame.append(image, marks);
  } else frame.append(make("span", row.reason || row.status));
  if (row.decision) frame.append(make("span", WORDS[row.decision], `badge ${row.decision}`));
  const verdict = row.status !== "ok" ? row.status : row.is_anomalous === null ? "no verdict" : row.is_anomalous ? "" : "normal";
  const facts = [verdict, row.p_value === null ? "" : `p ${digits(row.p_value, 2)}`, row.score === null ? "" : `score ${digits(row.score, 4)}`];
  text.append(make("div", nameOf(row.uri), "title"), make("div", row.product === null ? "no product" : row.product), make("div", facts.filter(Boolean).join(" · ")));
  link.append(frame, text);
  item.append(link);
  return item;
}
async function showList() {
  const answer = await ask("/api/parts", { ...filter(), offset, limit: SIZE });
  rows = answer.rows;
  showProgress(answer);
  get("shown").textContent = plural(answer.parts, "part");
  get("grid").replaceChildren(...rows.map(card));
  get("none").hidden = answer.parts > 0;
  get("left-out").hidden = answer.left_out === 0;
  get("left-out").firstElementChild.textContent = `Left out: ${plural(answer.left_out, "part")} that a person called a false alarm under this model before the list was read.`;
  const pages = Math.max(1, Math.ceil(answer.parts / SIZE));
  get("page").value = 1 + offset / SIZE;
  get("of").textContent = `of ${count(pages)}`;
  get("page").dataset.pages = pages;
  get("earlier").disabled = offset === 0;
  get("later").disabled = 1 + offset / SIZE >= pages;
  get("pages").hidden = pages === 1;
  get("start").disabled = answer.parts === 0;
}
function turnTo(page) {
  offset = SIZE * (Math.min(Math.max(1, page || 1), Number(get("page").dataset.pages)) - 1);
  work(async () => {
    await showList();
    scrollTo(0, 0);
    get("told").textContent = `page ${1 + offset / SIZE}`;
  });
}

// One part.
function fact(name, value) {
  return [make("dt", name), make("dd", value)];
}
function showStanding() {
  const { row } = current;
  const when = row.decided_at ? new Date(row.decided_at).toLocaleString() : "";
  get("standing").textContent = row.decision ? `${WORDS[row.decision]}, by ${row.who || "unknown"}, ${when}` : "not decided yet";
  for (const button of document.querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", button.dataset.decision === row.decision);
}
async function showPart(id) {
  const answer = await ask("/api/part", { ...filter(), id });
  const { row } = answer;
  current = answer;
  if (location.hash !== `#part=${encodeURIComponent(id)}`) history.pushState(null, "", `#part=${encodeURIComponent(id)}`);
  get("list").hidden = true;
  get("one").hidden = false;
  get("name").textContent = nameOf(row.uri);
  get("position").textContent = `${count(answer.position + 1)} of ${count(answer.parts)}`;
  showProgress(answer);
  const facts = [["Product", row.product ?? "none"], ["Score", digits(row.score, 4)], ["p-value", digits(row.p_value, 2)], ["Verdict", row.is_anomalous === null ? "none" : row.is_anomalous ? "anomalous" : "normal"], ["Size", row.width ? `${count(row.width)} × ${count(row.height)} px, ${row.bit_depth} bit` : "–"], ["Night", row.run_id.slice(0, 10)], ["Address", row.uri]];
  facts.splice(1, 0, ...row.fields);
  if (row.part !== null) facts.splice(1, 0, ["Part", row.part]);
  if (row.view !== null) facts.splice(1, 0, ["View", row.view]);
  if (row.status !== "ok") facts.splice(1, 0, ["Status", row.status]);
  if (row.reason) facts.push(["Reason", row.reason]);
  get("facts").replaceChildren(...facts.flatMap(([name, value]) => fact(name, value)));
  showStanding();
  const places = answer.regions.map((region) => {
    const item = make("li"), button = make("button", `${region.number}: at ${count(region.box_x)}, ${count(region.box_y)}, ${count(region.box_width)} × ${count(region.box_height)} px${region.p_value === null ? "" : `, p ${digits(region.p_value, 2)}`}`);
    button.type = "button";
    button.addEventListener("click", () => look(region.box_x + region.box_width / 2, region.box_y + region.box_height / 2, region.box_width, region.box_height));
    item.append(button);
    return item;
  });
  get("areas").replaceChildren(...places);
  get("areas-title").hidden = !places.length;
  showPicture(answer);
  get("name").focus({ preventScroll: true });
  get("told").textContent = `${nameOf(row.uri)}, ${get("position").textContent}, ${get("standing").textContent}`;
  fetchAhead(row);
}
async function step(direction) {
  const answer = await ask("/api/parts", { ...filter(), [direction]: current.row.place, limit: 1 });
  if (answer.rows.length) await showPart(answer.rows[0].image_id);
  else tell(direction === "after" ? "This was the last part of the list." : "This is the first part of the list.");
}
async function decide(decision, image, before) {
  const body = { image_id: image.image_id, decision, who: get("who").value.trim(), seen: before, filter: filter() };
  const answer = await ask("/api/decisions", {}, body);
  showProgress(answer);
  if (current && current.row.image_id === image.image_id) {
    Object.assign(current.row, { decision: answer.row.decision, who: answer.row.who, decided_at: answer.row.decided_at });
    showStanding();
  }
  const other = answer.replaced;
  if (other) tell(`Saved: ${WORDS[decision]}. It replaces ${other.decision ? WORDS[other.decision] : "the withdrawal"} by ${other.who || "another person"}, who decided meanwhile.`);
  else tell(`${nameOf(image.uri)}: ${WORDS[decision]}`);
  return answer;
}
function decideAndGoOn(decision) {
  if (!current) return;
  work(async () => {
    const { row } = current, earlier = { row, decision: row.decision || "undecided" };
    await decide(decision, row, row.decided_at);
    undone.push(earlier);
    await step("after");
  });
}
function undo() {
  work(async () => {
    const last = undone.at(-1);
    if (!last) return tell("There is nothing to undo.");
    if (!current || current.row.image_id !== last.row.image_id) await showPart(last.row.image_id);
    await decide(last.decision, last.row, current.row.decided_at);
    undone.pop();
    tell(`Undone: ${nameOf(last.row.uri)} is ${WORDS[last.decision]}`);
  });
}
async function showGrid() {
  const id = current && current.row.image_id;
  current = null;
  get("one").hidden = true;
  get("list").hidden = false;
  if (location.hash) history.pushState(null, "", location.pathname);
  await showList();
  if (!id) return;
  const link = [...document.querySelectorAll("#grid a")].find((each) => each.dataset.id === id);
  (link || get("main")).focus();
}
async function start() {
  const answer = await ask("/api/parts", { ...filter(), ...(filter().decided ? {} : { decided: "no" }), limit: 1 });
  if (answer.rows.length) await showPart(answer.rows[0].image_id);
  else tell("All parts of the list are decided.");
}
function route() {
  const id = location.hash.startsWith("#part=") ? decodeURIComponent(location.hash.slice(6)) : "";
  if (id) work(() => showPart(id));
  else if (location.hash === "") work(showGrid);
}

// What others decide, and new nights.
async function poll() {
  try {
    const answer = await ask("/api/news", { seen });
    seen = answer.seen;
    get("notice").hidden = !answer.new_night;
    get("notice").firstElementChild.textContent = "Scores were published since this list was read.";
    const name = get("who").value.trim() || serverName;
    const others = answer.rows.filter((row) => row.who !== name);
    if (others.length) {
      const row = current && answer.rows.find((each) => each.image_id === current.row.image_id);
      if (row) {
        Object.assign(current.row, { decision: row.decision === "undecided" ? null : row.decision, who: row.who, decided_at: row.decided_at });
        showStanding();
      }
      if (!current && !document.activeElement.closest("#grid")) await showList();
      else showProgress(await ask("/api/parts", { ...filter(), limit: 1 }));
      tell(row ? `${row.who || "Another person"} decided this part: ${WORDS[row.decision]}` : `${plural(others.length, "decision")} of others`);
    }
  } catch { /* the next poll, or the next decision, tells */ }
}

const KEYS = { d: () => decideAndGoOn("defect"), f: () => decideAndGoOn("false_alarm"), u: () => decideAndGoOn("unsure"), j: () => work(() => step("after")), k: () => work(() => step("before")), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit, p: lookAtPeak, m: () => toggle("map"), r: () => toggle("regions"), Escape: () => work(showGrid) };
Object.assign(KEYS, { ArrowRight: KEYS.j, ArrowLeft: KEYS.k });
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "z") undo();
  else if (current && KEYS[key]) KEYS[key]();
  else if (!current && key === "s") work(start);
  else return;
  event.preventDefault();
});
for (const [id, action] of Object.entries({ in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit, peak: lookAtPeak, map: () => toggle("map"), regions: () => toggle("regions"), next: KEYS.j, back: KEYS.k, undo, close: KEYS.Escape, "show-left-out": showLeftOut, start: () => work(start), earlier: () => turnTo(offset / SIZE), later: () => turnTo(offset / SIZE + 2), reload: () => work(async () => { await ask("/api/load", {}, {}); location.reload(); }) })) get(id).addEventListener("click", action);
for (const button of document.querySelectorAll("[data-decision]")) button.addEventListener("click", () => decideAndGoOn(button.dataset.decision));
get("page").addEventListener("change", () => turnTo(Number.parseInt(get("page").value, 10)));
addEventListener("popstate", route);
addEventListener("resize", () => { if (current && current.row.status === "ok") fit(); });

work(async () => {
  if (location.search) history.replaceState(null, "", location.pathname + location.hash); // the token
  for (const name of ["map", "regions"]) overlay(name, localStorage.getItem(`nightloupe.${name}`) !== "false");
  const told = await ask("/api/overview");
  ({ seen, who: serverName } = told);
  get("nearest").hidden = !told.nearest;
  get("model").textContent = told.model;
  get("who").value = localStorage.getItem("nightloupe.who") || told.who;
  choices("product", told.products, true);
  choices("night", told.nights);
  choices("status", told.statuses);
  choices("view", told.views);
  told.fields.forEach(addField);
  if (location.hash) route();
  else await showList();
  setInterval(poll, 10000);
});
get("who").addEventListener("change", () => localStorage.setItem("nightloupe.who", get("who").value.trim()));
