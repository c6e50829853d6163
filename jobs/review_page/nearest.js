"use strict";

// The good places that the peak of a part is most similar to, once its own picture is shown.
let comparing = new AbortController(); // of the part that is shown
async function showNearest(row) {
  comparing.abort();
  comparing = new AbortController();
  const { signal } = comparing, told = get("nearest-told"), whole = get("whole");
  get("places").replaceChildren();
  told.textContent = row.status === "ok" ? "comparing …" : "";
  if (get("nearest").hidden || row.status !== "ok") return;
  try {
    await new Promise((later) => setTimeout(later, 200)); // quick keys compare nothing
    await whole.decode();
    if (signal.aborted) return;
    const answer = await fetch(`/api/nearest?${new URLSearchParams({ id: row.image_id })}`, { signal });
    const content = await answer.json();
    if (signal.aborted) return;
    const reason = answer.ok ? content.reason : content.error;
    told.textContent = reason ? `${reason}.` : "";
    if (!reason) get("places").replaceChildren(...similar(row, content));
  } catch (error) {
    if (!signal.aborted) told.textContent = error instanceof TypeError ? "The server does not answer." : "";
  }
}
function similar(row, { peak, places }) {
  const [x, y, w, h] = peak.box;
  const own = place(pictureOf(row, { x, y, w, h, side: 400 }), peak, "the peak of this part", "this part");
  return [own, ...places.map((good) => {
    const far = `distance ${digits(good.distance, 3)}`;
    if (!good.box) return place("", null, "", far, "", "The model does not know which picture this is from.");
    const source = `/good?${new URLSearchParams({ id: row.image_id, v: row.run_id, vector: good.vector, side: 400 })}`;
    return place(source, good, `good place of ${good.uri}, ${far}`, far, nameOf(good.uri));
  })];
}
function place(source, framed, alt, caption, name = "", gone = "") {
  const item = make("li"), figure = make("figure"), frame = make("div", undefined, "frame");
  const below = make("figcaption", caption);
  if (gone) frame.append(make("span", gone));
  else {
    const image = make("img"), [x, y, width, height] = framed.cell;
    image.alt = alt;
    image.title = alt;
    image.onerror = async () => image.parentElement.replaceChildren(make("span", await whyNot(source)));
    image.src = source;
    const cell = shape("svg", { viewBox: framed.box.join(" "), "aria-hidden": "true" });
    cell.append(...["halo", ""].map((kind) => shape("rect", { x, y, width, height, class: kind })));
    frame.append(image, cell);
  }
  below.append(make("small", name));
  figure.append(frame, below);
  item.append(figure);
  return item;
}
async function whyNot(source) {
  const answer = await fetch(source).catch(() => null);
  return answer && !answer.ok ? `No picture: ${(await answer.json()).error}.` : "No picture.";
}
