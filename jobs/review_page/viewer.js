"use strict";

const get = (id) => document.getElementById(id);

// The picture: a stage in pixels of the picture, which is moved and scaled.
const view = { x: 0, y: 0, scale: 1 };
let settled = 0;
function fitScale() {
  const box = get("viewer").getBoundingClientRect();
  return Math.min(box.width / current.row.width, box.height / current.row.height);
}
function fit() {
  const box = get("viewer").getBoundingClientRect();
  view.scale = fitScale();
  view.x = (box.width - current.row.width * view.scale) / 2;
  view.y = (box.height - current.row.height * view.scale) / 2;
  draw();
}
function draw() {
  get("stage").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  get("stage").style.setProperty("--line-width", 2 / view.scale);
  get("zoom").textContent = `${digits(100 * view.scale, 3)} %`;
  get("viewer").classList.toggle("near", view.scale > 2);
  clearTimeout(settled);
  settled = setTimeout(sharpen, 120);
}
// What is in sight, at the resolution of the screen.
function sharpen() {
  if (!current || current.row.status !== "ok") return;
  const { row } = current, box = get("viewer").getBoundingClientRect(), detail = get("detail");
  const x = Math.max(0, Math.floor(-view.x / view.scale)), y = Math.max(0, Math.floor(-view.y / view.scale));
  const right = Math.min(row.width, Math.ceil((box.width - view.x) / view.scale));
  const bottom = Math.min(row.height, Math.ceil((box.height - view.y) / view.scale));
  const [w, h] = [right - x, bottom - y];
  if (w <= 0 || h <= 0 || view.scale <= 1.05 * fitScale()) { detail.hidden = true; return; }
  const side = Math.ceil(Math.min(Math.max(w, h), Math.max(w, h) * view.scale * (devicePixelRatio || 1)));
  const next = new Image();
  next.onload = () => {
    if (current && current.row === row) {
      detail.src = next.src;
      Object.assign(detail.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
      detail.hidden = false;
    }
  };
  next.src = pictureOf(row, { x, y, w, h, side, kind: view.scale >= 1 && w * h < 4e6 ? "png" : "jpeg" });
}
function zoom(factor, atX, atY) {
  const box = get("viewer").getBoundingClientRect();
  const [cx, cy] = [atX ?? box.width / 2, atY ?? box.height / 2];
  const scale = Math.min(Math.max(view.scale * factor, fitScale() / 2), 40);
  view.x = cx - ((cx - view.x) * scale) / view.scale;
  view.y = cy - ((cy - view.y) * scale) / view.scale;
  view.scale = scale;
  draw();
}
function look(x, y, width, height) {
  const box = get("viewer").getBoundingClientRect();
  view.scale = Math.min(40, Math.max(fitScale(), 0.4 * Math.min(box.width / width, box.height / height)));
  view.x = box.width / 2 - x * view.scale;
  view.y = box.height / 2 - y * view.scale;
  draw();
}
function lookAtPeak() {
  const side = 0.1 * Math.min(current.row.width, current.row.height);
  if (current.row.peak_x !== null) look(current.row.peak_x, current.row.peak_y, side, side);
}
function overlay(name, isOn) {
  get(name).setAttribute("aria-pressed", isOn);
  localStorage.setItem(`nightloupe.${name}`, isOn);
  get(name === "map" ? "heat" : "marks").toggleAttribute("hidden", !isOn);
}
const isOn = (name) => get(name).getAttribute("aria-pressed") === "true";
function toggle(name) {
  overlay(name, !isOn(name));
  get("told").textContent = `${name} ${isOn(name) ? "on" : "off"}`;
}

function showPicture({ row, regions }) {
  const [whole, heat, marks, missing] = ["whole", "heat", "marks", "missing"].map(get);
  showNearest(row);
  get("detail").hidden = true;
  const hasPicture = row.status === "ok";
  get("stage").hidden = !hasPicture;
  missing.hidden = hasPicture;
  missing.textContent = row.reason || row.status;
  if (!hasPicture) return;
  get("stage").style.width = `${row.width}px`;
  get("stage").style.height = `${row.height}px`;
  whole.alt = `The part ${nameOf(row.uri)}; the peak of its anomaly map is at ${row.peak_x}, ${row.peak_y}`;
  whole.onerror = async () => {
    if (current.row !== row) return;
    get("stage").hidden = true;
    missing.hidden = false;
    missing.textContent = "The picture cannot be shown.";
    const answer = await fetch(whole.src);
    if (current.row === row && !answer.ok) missing.textContent = `No picture: ${(await answer.json()).error}.`;
  };
  whole.src = pictureOf(row, { side: 1600 });
  heat.onerror = () => heat.removeAttribute("src");
  if (row.map_uri) heat.src = `/heat?${new URLSearchParams({ id: row.image_id, v: row.run_id, side: 1024 })}`;
  else heat.removeAttribute("src");
  heat.hidden = !isOn("map");
  get("map").disabled = !row.map_uri;
  marks.setAttribute("viewBox", `0 0 ${row.width} ${row.height}`);
  const boxes = regions.flatMap((r) => {
    const at = { x: r.box_x, y: r.box_y, width: r.box_width, height: r.box_height };
    return [shape("rect", { ...at, class: "halo" }), shape("rect", at)];
  });
  marks.replaceChildren(...(boxes.length ? boxes : ring(row)));
  marks.toggleAttribute("hidden", !isOn("regions"));
  fit();
}

// The next picture, once that of this part is shown, whose decoding it would slow down.
async function fetchAhead({ place }) {
  await get("whole").decode().catch(() => {});
  if (!current || current.row.place !== place) return;
  const answer = await ask("/api/parts", { ...filter(), after: place, limit: 1 }).catch(() => ({ rows: [] }));
  for (const row of answer.rows) if (row.status === "ok") new Image().src = pictureOf(row, { side: 1600 });
}

get("viewer").addEventListener("wheel", (event) => {
  if (!current || current.row.status !== "ok") return;
  event.preventDefault();
  const box = get("viewer").getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
// One finger or the mouse moves the picture, two fingers zoom.
const touching = new Map();
get("viewer").addEventListener("pointerdown", (event) => {
  if (event.target.closest("button")) return;
  touching.set(event.pointerId, [event.clientX, event.clientY]);
  get("viewer").setPointerCapture(event.pointerId);
  get("viewer").classList.add("moving");
});
get("viewer").addEventListener("pointermove", (event) => {
  const from = touching.get(event.pointerId);
  if (!from || !current) return;
  const to = [event.clientX, event.clientY], box = get("viewer").getBoundingClientRect();
  const other = [...touching].find(([id]) => id !== event.pointerId);
  if (other) {
    const apart = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]);
    zoom(apart(to) / Math.max(1, apart(from)), (to[0] + other[1][0]) / 2 - box.left, (to[1] + other[1][1]) / 2 - box.top);
  } else {
    view.x += to[0] - from[0];
    view.y += to[1] - from[1];
    draw();
  }
  touching.set(event.pointerId, to);
});
for (const kind of ["pointerup", "pointercancel"]) get("viewer").addEventListener(kind, (event) => {
  touching.delete(event.pointerId);
  if (!touching.size) get("viewer").classList.remove("moving");
});
