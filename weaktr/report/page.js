"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const PAGE = 48;

/** What is chosen; `photos` are those that the filters leave, in order. */
const state = { set: 0, label: 0, open: -1, photos: [], drawn: 0, layers: { cam: false, mask: true, outline: true } };

// ---- small things ------------------------------------------------------------------------------

/** An element with properties and children; text of others comes in as text alone. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const count = (value) => value.toLocaleString("en-US");
const DOUBTS = { full: "hardly any background", empty: "nothing found" };
const nameOf = (label) => (label === 255 ? "undecided" : report.labels[label] ?? `label ${label}`);
const set = () => report.sets[state.set] ?? { classes: [], title: "", masks: 0, maker: "" };

function area(share) {
  return share < 0.0995 ? percent(share, share < 0.001 ? 2 : 1) : percent(share);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "not noted";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function moment(text) {
  return text ? text.slice(0, 16).replace("T", " ") : "";
}

function dot(label) {
  const element = make("span", { className: "dot", "aria-hidden": "true" });
  const [red, green, blue] = label === 0 ? [128, 128, 128] : report.colours[label];
  element.style.background = `rgb(${red}, ${green}, ${blue})`;
  return element;
}

/** Text in which what stands between backticks is code. */
function withCode(text) {
  const unbroken = (word) => (word.startsWith("-") ? make("span", {}, word) : word);
  return text.split("`").map((part, place) => (place % 2 ? make("code", {}, ...part.split(/( )/).map(unbroken)) : part));
}

function meter(share) {
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  return make("span", { className: "meter", "aria-hidden": "true" }, bar);
}

function table(heads, rows) {
  const cells = (tag, row) => row.map((cell) => {
    const { text, className = "" } = cell !== null && typeof cell === "object" && !(cell instanceof Node) ? cell : { text: cell };
    return make(tag, tag === "th" ? { className, scope: "col" } : { className }, text);
  });
  return make("table", {},
    make("thead", {}, make("tr", {}, ...cells("th", heads))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row)))));
}

/** A table that a narrow window shows as a list for each row, in which each cell has its head. */
function stacked(heads, rows) {
  const made = table(heads, rows);
  made.className = "stacked";
  const names = [...made.tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const row of made.tBodies[0].rows) [...row.cells].forEach((cell, place) => { cell.dataset.head = names[place]; });
  return made;
}

// ---- marks and theme, kept where the browser allows it -----------------------------------------

const store = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  put(key, value) { try { localStorage.setItem(key, value); } catch { /* then for this visit alone */ } },
};

function storedMarks() {
  try {
    const names = JSON.parse(store.get(`weaktr:${report.id}`));
    return Array.isArray(names) ? names : [];
  } catch {
    return [];
  }
}

const known = new Set(report.photographs.map((photo) => photo.name));
const marks = new Set(storedMarks().filter((name) => known.has(name)));

function mark(name) {
  if (!marks.delete(name)) marks.add(name);
  store.put(`weaktr:${report.id}`, JSON.stringify([...marks]));
  showMarks();
}

function showMarks() {
  $("marked-count").textContent = `(${marks.size})`;
  $("marked-list").value = [...marks].join("\n");
  $("copy").disabled = $("unmark").disabled = marks.size === 0;
  for (const card of document.querySelectorAll(".card")) {
    card.querySelector(".star").hidden = !marks.has(card.dataset.name);
  }
}

async function copyMarks() {
  try {
    await navigator.clipboard.writeText($("marked-list").value);
    $("copied").textContent = "copied";
  } catch {
    $("marked-list").focus();
    $("marked-list").select();
    $("copied").textContent = document.execCommand("copy") ? "copied" : "selected: copy with Ctrl-C";
  }
}

/** The theme that is not shown now. */
function otherTheme() {
  const own = document.documentElement.dataset.theme;
  const isDark = own ? own === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return isDark ? "light" : "dark";
}

function showTheme(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  const other = otherTheme();
  $("theme").textContent = other === "light" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Change to ${other} colours`);
}

// ---- header, words, scores, how it was made ------------------------------------------------------------------

function showHeader() {
  document.title = `${report.name} - weaktr`;
  $("name").textContent = report.name;
  $("brand").textContent = report.name;
  const kinds = report.sets.map((one) => one.title.toLowerCase()).join(" and ");
  const parts = [report.recipe_name, kinds || "no masks yet", moment(report.made)];
  $("summary").textContent = parts.filter(Boolean).join(" · ");
  for (const [value, unit, what] of headline()) {
    $("headline").append(make("div", {}, make("dt", {}, what), make("dd", {}, value, make("small", {}, unit))));
  }
  $("notes").append(...notes().map((text) => make("li", {}, text)));
  $("notes").hidden = !$("notes").children.length;
  $("footer").textContent = `Written by weaktr on ${moment(report.made)}. The page needs no network; small pictures of the photographs are in it.`;
}

/** Three to five numbers: value, unit, what it is. */
function headline() {
  const numbers = report.sets.map((one) => [count(one.masks), "", `photographs with ${one.maker === "label" ? "pseudo labels" : "predictions"}`]);
  if (report.sets.length) {
    const classes = new Set(report.sets.flatMap((one) => one.classes.map((row) => row.label)));
    numbers.push([count(classes.size), ` of ${report.labels.length - 1}`, "classes in labels or masks"]);
  }
  const best = report.scores.at(-1);
  if (best) {
    const between = best.low === null ? "" : ` ${number(best.low)}–${number(best.high)}`;
    numbers.push([number(best.miou), between, `mIoU in %, ${best.what}`]);
  } else {
    for (const one of report.sets) {
      const { given, found } = totals(one);
      if (given) numbers.push([percent(found / given), "", `of the image-level labels found by ${one.title.toLowerCase()}`]);
    }
  }
  const seconds = report.stages.map((stage) => stage.seconds).filter((value) => value !== null);
  if (seconds.length) numbers.push([duration(seconds.reduce((a, b) => a + b, 0)), "", "computing, all noted stages"]);
  return numbers.slice(0, 5);
}

function totals(one) {
  const sum = (key) => one.classes.reduce((total, row) => total + row[key], 0);
  return { given: sum("given"), shown: sum("shown"), found: sum("found"), unknown: sum("unknown") };
}

function notes() {
  const lines = [];
  for (const one of report.sets) {
    const title = one.title;
    const here = report.photographs.filter((photo) => photo.maker === one.maker).length;
    if (here < one.masks) lines.push(`${title}: ${count(one.masks - here)} of ${count(one.masks)} photographs are not shown: too many for one page, or not readable now. All count in the tables.`);
    if (one.masks && one.confidence === null) lines.push(`${title}: no confidence is known. An older version made these masks, or somebody changed them.`);
    if (one.edited) lines.push(`${title}: ${count(one.edited)} masks were changed by hand; areas are of the masks as they are now.`);
    if (one.without) lines.push(`${title}: ${count(one.without)} photographs show no class and have no mask.`);
    if (one.unusable) lines.push(`${title}: ${count(one.unusable)} masks cannot be used: they, or their photographs, have been changed since.`);
  }
  if (report.photographs.length && !report.cams.are_possible) lines.push("No CAMs: there is no stage-1 model here.");
  else if (report.cams.photographs < report.photographs.length) lines.push(`CAMs are of ${count(report.cams.photographs)} of ${count(report.photographs.length)} photographs, the first of each class and the worst (one scale, not flipped).`);
  return lines;
}

function showWords() {
  for (const group of Object.keys(report.words)) {
    $(group).append(...report.words[group].map((text) => make("li", {}, ...withCode(text))));
    $(group).parentElement.hidden = !report.words[group].length;
  }
}

function showMade() {
  if (report.stages.length) {
    const rows = report.stages.map((stage) => [
      stage.title, stage.is_finished ? duration(stage.seconds) : { text: "not finished", className: "bad" }, moment(stage.finished_at) || "–",
    ]);
    $("stages").append(make("div", { className: "scroll" }, table(["stage", "took", "finished"], rows)));
  }
  const groups = { ...report.facts };
  if (Object.keys(report.changed).length) groups["Settings that are not weaktr's defaults"] = report.changed;
  for (const [title, values] of Object.entries(groups)) {
    const pairs = Object.entries(values).flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]);
    if (!pairs.length) continue;
    const list = make("dl", {}, ...pairs);
    const body = pairs.length > 24 ? make("details", {}, make("summary", {}, `${pairs.length / 2} settings`), list) : list;
    $("facts").append(make("div", {}, make("h3", {}, title), body));
  }
  $("recipe").hidden = !report.recipe;
  $("recipe-text").textContent = report.recipe;
}

function showScores() {
  if (report.scores.length) {
    const heads = ["in %", "mIoU", "interval", "precision", "recall", "pixels right", "boundary F", { text: "made with", className: "text" }];
    const rows = report.scores.map((row) => [
      row.what, make("b", {}, number(row.miou)),
      row.low === null ? "–" : `${number(row.low)}–${number(row.high)}`,
      number(row.precision), number(row.recall), number(row.pixel_accuracy), number(row.boundary_f),
      { text: row.caption.replace(`${row.what}; `, ""), className: "text" },
    ]);
    $("scores-body").append(stacked(heads, rows));
    const level = report.scores.find((row) => row.percent)?.percent;
    const told = report.scores[0].supervision ? `Trained from ${report.scores[0].supervision}. ` : "";
    $("scores-body").append(make("p", { className: "soft" }, `${told}${level ? `Intervals: ${level} %, bootstrap over the photographs.` : ""}`));
  } else {
    $("scores-title").textContent = "Agreement";
    $("scores-body").append(make("p", { className: "soft" },
      "Without true masks, or a finished evaluation: how the masks agree with the image-level labels. It says nothing about outlines."));
  }
  const rows = report.sets.map((one) => {
    const { given, shown, found, unknown } = totals(one);
    return [one.title, count(one.masks), count(given), given ? percent(found / given, 1) : "–",
      shown - unknown ? percent(found / (shown - unknown), 1) : "–", count(one.doubts.full ?? 0), percent(one.confidence, 1)];
  });
  if (rows.length) {
    const heads = ["image-level labels", "photographs", "labels", "recall", "precision", DOUBTS.full, "mean confidence"];
    $("scores-body").append(stacked(heads, rows));
  }
}

// ---- curves ------------------------------------------------------------------------------------

const W = 360, H = 190, LEFT = 50, RIGHT = 8, TOP = 8, BOTTOM = 34;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Round numbers from low to high. */
function ticks(low, high, most) {
  const rough = (high - low) / most || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
  return found;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(Number(value.toPrecision(3)));
}

/** The mean of each point and its neighbours, a twentieth of the curve together. */
function smooth(points) {
  const reach = Math.ceil(points.length / 40);
  return points.map(([x], at) => {
    const own = points.slice(Math.max(0, at - reach), at + reach + 1);
    return [x, own.reduce((sum, point) => sum + point[1], 0) / own.length];
  });
}

function curve({ title, x, y, points, is_mean: isMean, hint }) {
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const low = Math.min(0, ...ys), marksOf = ticks(low, Math.max(...ys, low + 1e-12), 5);
  const step = marksOf[1] - marksOf[0] || 1, span = Math.ceil((Math.max(...ys) - low) / step - 1e-9) * step || 1;
  const px = (value) => LEFT + (W - LEFT - RIGHT) * ((value - x0) / (x1 - x0 || 1));
  const py = (value) => H - BOTTOM - (H - TOP - BOTTOM) * ((value - low) / span);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${y} by ${x}, from ${short(ys[0])} to ${short(ys.at(-1))}` });
  const text = (content, at, anchor) => { const t = svg("text", { ...at, "text-anchor": anchor }); t.textContent = content; return t; };
  for (const value of ticks(low, low + span, span / step)) {
    drawing.append(svg("line", { class: "grid-line", x1: LEFT, x2: W - RIGHT, y1: py(value), y2: py(value) }), text(short(value), { x: LEFT - 6, y: py(value) + 4 }, "end"));
  }
  for (const value of ticks(x0, x1, 5).filter((at) => Number.isInteger(at))) drawing.append(text(short(value), { x: px(value), y: H - BOTTOM + 15 }, "middle"));
  drawing.append(text(isMean ? `${x} (means of pieces)` : x, { x: (LEFT + W - RIGHT) / 2, y: H - 3 }, "middle"));
  const drawn = (own) => own.map((point) => `${px(point[0]).toFixed(1)},${py(point[1]).toFixed(1)}`).join(" ");
  const isNoisy = points.length > 60 && y.includes("loss");
  if (isNoisy) drawing.append(svg("polyline", { class: "raw", points: drawn(points) }));
  drawing.append(svg("polyline", { class: "line", points: drawn(isNoisy ? smooth(points) : points) }));
  const value = make("span", { className: "soft" });
  const pointer = svg("line", { class: "pointer", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  drawing.append(pointer);
  drawing.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - drawing.getBoundingClientRect().left) / drawing.clientWidth) * W;
    const nearest = points.reduce((a, b) => (Math.abs(px(b[0]) - at) < Math.abs(px(a[0]) - at) ? b : a));
    for (const end of ["x1", "x2"]) pointer.setAttribute(end, px(nearest[0]));
    pointer.setAttribute("visibility", "visible");
    value.textContent = ` ${short(nearest[1])} at ${Math.round(nearest[0])}`;
  });
  drawing.addEventListener("pointerleave", () => { pointer.setAttribute("visibility", "hidden"); value.textContent = ""; });
  return make("figure", {}, make("figcaption", {}, make("b", {}, y), make("span", { className: "soft" }, ` · ${title}`), value), drawing,
    hint ? make("p", { className: "soft hint" }, hint) : null);
}

/** The curves that say most, and folded away the others. */
function showCurves() {
  const main = report.curves.filter((one) => !one.is_minor), minor = report.curves.filter((one) => one.is_minor);
  $("curves-body").append(...main.map(curve));
  $("curves-minor").append(...minor.map(curve));
  $("curves-more").hidden = !minor.length;
  $("curves-more").open = !main.length;
}

// ---- classes -----------------------------------------------------------------------------------

function showSets() {
  for (const tabs of document.querySelectorAll("[data-sets]")) {
    tabs.replaceChildren(...report.sets.map((one, index) => make("button", {
      type: "button", "aria-pressed": String(index === state.set), onclick: () => choose({ set: index }),
    }, `${one.title} (${count(one.masks)})`)));
    tabs.hidden = report.sets.length < 2;
  }
}

function classIou() {
  const keys = { label: (key) => key === "pseudo_label_miou", predict: (key) => key === "val_miou" || key === "not_held_out_miou" };
  return report.scores.findLast((row) => keys[set().maker]?.(row.key))?.classes;
}

function showClasses() {
  const ious = classIou();
  const heads = ["class", "labels", { text: "found", className: "wide" }, "missing", "extra", { text: "area", className: "wide" }, { text: "confidence", className: ious ? "wide" : "" }];
  if (ious) heads.push("IoU %");
  const order = (row) => [row.confidence ?? -1, row.label];
  const classes = [...set().classes].sort((a, b) => order(a)[0] - order(b)[0] || a.label - b.label);
  const rows = classes.map((row) => {
    const missing = row.given - row.found, extra = row.shown - row.found - row.unknown;
    const name = make("button", { type: "button", className: "class-name", onclick: () => choose({ label: row.label }) }, dot(row.label), nameOf(row.label));
    const sure = row.confidence === null ? "–" : make("span", {}, percent(row.confidence), meter(row.confidence));
    const cells = [name, count(row.given), { text: count(row.found), className: "wide" }, { text: count(missing), className: missing ? "bad" : "soft" },
      { text: count(extra), className: extra ? "bad" : "soft" }, { text: row.area === null ? "–" : area(row.area), className: "wide" }, { text: sure, className: ious ? "wide" : "" }];
    return ious ? [...cells, number(ious[nameOf(row.label)])] : cells;
  });
  const made = table(heads, rows);
  const chosen = Math.max(0, classes.findIndex((row) => row.label === state.label));
  if (rows.length) made.tBodies[0].rows[chosen].className = "chosen";
  $("class-table").replaceChildren(rows.length ? made : make("p", { className: "soft" }, "No photograph has a class."));
  $("class-rule").textContent = `A mask shows a class, which then counts as found or extra, from ${percent(report.least_area, 1)} of its pixels on.`;
  $("class-rule").hidden = !rows.length;
  showStrips(classes[chosen]);
}

function showStrips(row) {
  const parts = [];
  if (row) {
    parts.push(make("h3", { className: "row" }, dot(row.label), nameOf(row.label)));
    const strips = Object.entries(row.strips).filter(([, places]) => places.length);
    const isLone = strips.length === 1 && strips[0][1].length === 1;
    for (const [kind, places] of strips) {
      const photos = places.map((place) => report.photographs[place]);
      if (!isLone) parts.push(make("p", { className: "soft" }, { worst: "Worst", typical: "Typical", best: "Best" }[kind]));
      parts.push(make("div", { className: "strip" }, ...photos.map((photo, index) => card(photo, () => view(photos, index), false))));
    }
  }
  $("strips").replaceChildren(...parts);
}

// ---- photographs -------------------------------------------------------------------------------

/** In words what disagrees with the labels, or is suspicious by itself; empty = nothing. */
function why(photo) {
  const parts = [];
  if (photo.missing.length) parts.push(`missing ${photo.missing.map(nameOf).join(", ")}`);
  if (photo.extra.length) parts.push(`extra ${photo.extra.map(nameOf).join(", ")}`);
  if (photo.doubt) parts.push(DOUBTS[photo.doubt]);
  return parts.join("; ");
}

function sureness(photo) {
  const parts = [];
  if (photo.iou !== null) parts.push(`IoU ${number(photo.iou)}`);
  if (photo.confidence !== null) parts.push(`confidence ${percent(photo.confidence)}`);
  if (photo.is_edited) parts.push("changed by hand");
  return parts.join(" · ");
}

/** The classes that a mask shows, and those of which it has traces: label, share, confidence. */
function shownBy(photo) {
  const isTrace = ([label, share]) => label && label !== 255 && share < report.least_area;
  return { shown: photo.labels.filter((one) => !isTrace(one)), traces: photo.labels.filter(isTrace) };
}

function card(photo, open, withText = true) {
  const wrong = why(photo), sure = sureness(photo);
  const shot = make("span", { className: "shot" },
    make("img", { src: photo.picture, alt: "", decoding: "async" }),
    make("img", { src: photo.mask, alt: "", className: "over", decoding: "async" }));
  const classes = shownBy(photo).shown.filter(([label]) => label && label !== 255).map(([label]) => nameOf(label)).join(", ") || "background only";
  const line = (text, className) => make("span", { className, title: text }, text || "\u00a0");
  const about = withText ? make("span", { className: "about" }, make("b", {}, photo.name),
    wrong ? line(wrong, "why bad") : null, line(sure, "sure"), wrong ? null : line(classes, "why")) : null;
  const star = make("span", { className: "star", hidden: !marks.has(photo.name) }, "marked");
  const title = [photo.name, wrong, sure].filter(Boolean);
  const element = make("button", { type: "button", className: "card", title: title.join("\n"), onclick: open, "aria-label": title.join(", ") }, shot, about, star);
  element.dataset.name = photo.name;
  return element;
}

/** Orders of photographs: each gives a number or text, the least first. */
const orders = {
  worst: { title: "worst first", of: (photo) => photo.place },
  unsure: { title: "least confident first", of: (photo) => sureOf(photo) ?? 2 },
  sure: { title: "most confident first", of: (photo) => -(sureOf(photo) ?? -1) },
  full: { title: "least background first", of: (photo) => shareOf(photo, 0) / (1 - shareOf(photo, 255) || 1) },
  iou: { title: "lowest IoU first", of: (photo) => photo.iou ?? 101 },
  name: { title: "by name", of: (photo) => photo.name },
};

function shareOf(photo, label) {
  return photo.labels.find(([own]) => own === label)?.[1] ?? 0;
}

/** The confidence in the chosen class, or in all. */
function sureOf(photo) {
  if (!state.label) return photo.confidence;
  return photo.labels.find(([label]) => label === state.label)?.[2] ?? null;
}

function filtered() {
  const low = Number($("low").value) / 100, high = Number($("high").value) / 100;
  const kinds = {
    all: () => true,
    missing: (photo) => (state.label ? photo.missing.includes(state.label) : photo.missing.length),
    extra: (photo) => (state.label ? photo.extra.includes(state.label) : photo.extra.length),
    full: (photo) => photo.doubt === "full",
    empty: (photo) => photo.doubt === "empty",
    edited: (photo) => photo.is_edited,
    marked: (photo) => marks.has(photo.name),
  };
  const isWanted = kinds[$("which").value];
  const photos = report.photographs.filter((photo) => {
    if (photo.maker !== set().maker || !isWanted(photo)) return false;
    const shows = photo.missing.includes(state.label) || photo.labels.some(([label, share]) => label === state.label && share >= report.least_area);
    if (state.label && !shows) return false;
    const sure = sureOf(photo);
    return (low === 0 && high === 1) || (sure !== null && sure >= low && sure <= high);
  });
  const { of } = orders[$("order").value];
  return photos.map((photo) => [of(photo), photo]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, photo]) => photo);
}

function showPhotographs() {
  state.photos = filtered();
  state.drawn = 0;
  const here = report.photographs.filter((photo) => photo.maker === set().maker).length;
  $("count").textContent = `${count(state.photos.length)} of ${count(here)} photographs`;
  $("why").hidden = $("order").value !== "worst";
  $("range").textContent = `${$("low").value}–${$("high").value} %`;
  $("grid").replaceChildren();
  drawMore();
}

function drawMore() {
  const photos = state.photos, first = state.drawn;
  const rest = photos.length - first;
  const next = photos.slice(first, first + (rest <= 1.25 * PAGE ? rest : PAGE)); // no page of a few
  state.drawn += next.length;
  $("grid").append(...next.map((photo, index) => card(photo, () => view(photos, first + index))));
  const left = photos.length - state.drawn;
  $("more").hidden = !left;
  $("show-more").textContent = `Show ${count(PAGE)} more of ${count(left)}`;
}

/** Draw more photographs, and give the focus to the first of them. */
function drawOn(isAll) {
  const first = state.drawn;
  do drawMore(); while (isAll && state.drawn < state.photos.length);
  $("grid").children[first]?.focus();
}

/** Change what is chosen, and show it. */
function choose({ set: index = state.set, label = state.label }) {
  state.set = index;
  state.label = set().classes.some((row) => row.label === label) ? label : 0;
  const names = [...set().classes].sort((a, b) => nameOf(a.label).localeCompare(nameOf(b.label)));
  $("class").replaceChildren(make("option", { value: 0 }, "all"), ...names.map((row) => make("option", { value: row.label }, nameOf(row.label))));
  $("class").value = state.label;
  showSets();
  showClasses();
  showPhotographs();
}

/** Arrow keys walk through the cards of a grid. */
function walkCards(event) {
  const cards = [...event.currentTarget.children], at = cards.indexOf(document.activeElement);
  const columns = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (at >= 0 && event.key === "m") { mark(cards[at].dataset.name); return; }
  if (at < 0 || !step || !cards[at + step]) return;
  event.preventDefault();
  cards[at + step].focus();
}

// ---- viewer ------------------------------------------------------------------------------------

let walked = [];

function view(photos, index) {
  walked = photos;
  state.open = index;
  if (!$("viewer").open) $("viewer").showModal();
  showOpen();
}

function showOpen() {
  const photo = walked[state.open];
  $("viewer-place").textContent = `${count(state.open + 1)} of ${count(walked.length)}`;
  $("viewer-name").textContent = photo.name;
  $("viewer-doubt").textContent = photo.doubt ? DOUBTS[photo.doubt] : "";
  $("viewer-facts").textContent = [`${photo.size[1]} × ${photo.size[0]} pixels`, sureness(photo)].filter(Boolean).join(" · ");
  $("legend").replaceChildren(...legend(photo));
  $("previous").disabled = state.open === 0;
  $("next").disabled = state.open === walked.length - 1;
  load($("picture"), photo.file && `${photo.file}.jpg`, photo.picture);
  load($("mask"), photo.file && `${photo.file}.png`, photo.mask);
  drawOutline(photo.mask);
  $("picture").alt = photo.name;
  const options = photo.cams.map(([label], place) => make("option", { value: place }, nameOf(label)));
  $("cam-class").replaceChildren(...options);
  const place = photo.cams.findIndex(([label]) => label === state.label);
  $("cam-class").value = Math.max(0, place);
  showLayers();
}

/** Show a file beside the page, or, where there is none, what is inside it. */
function load(image, file, inside) {
  image.onerror = file ? () => { image.onerror = null; image.src = inside; } : null;
  image.src = file || inside;
}

function legend(photo) {
  const { shown, traces } = shownBy(photo);
  const isSure = photo.labels.some(([, , sure]) => sure !== null);
  const lines = shown.map(([label, share, sure]) => {
    const isExtra = photo.extra.includes(label);
    const name = make("span", {}, nameOf(label), isExtra ? make("em", { className: "bad" }, " extra") : null);
    const facts = sure === null ? area(share) : `${area(share)} · ${percent(sure)}`;
    return make("li", {}, dot(label), name, make("span", { className: "soft", title: "share of the pixels · confidence" }, facts));
  });
  lines.push(...photo.missing.map((label) => make("li", {}, dot(label), make("span", {}, nameOf(label)), make("em", { className: "bad" }, "missing"))));
  if (lines.length) lines.unshift(legendHead("label", isSure ? "area · confidence" : "area"));
  if (traces.length) lines.push(legendHead(`traces below ${percent(report.least_area, 1)}: not counted`, ""));
  lines.push(...traces.map(([label, share]) => make("li", { className: "trace" }, dot(label), make("span", {}, nameOf(label)), make("span", {}, area(share)))));
  return lines;
}

function legendHead(left, right) {
  return make("li", { className: "soft head" }, make("span"), make("span", {}, left), make("span", {}, right));
}

function showLayers() {
  const photo = walked[state.open], { cam, mask: withMask, outline } = state.layers;
  for (const [name, isOn] of Object.entries(state.layers)) $(`show-${name}`).setAttribute("aria-pressed", String(isOn));
  const opacity = $("opacity").value / 100;
  $("show-cam").disabled = !photo.cams.length;
  $("no-cam").textContent = photo.cams.length ? "" : "No CAM of this photograph is in the page.";
  $("cam-choice").hidden = !cam || !photo.cams.length;
  $("cam").hidden = !cam || !photo.cams.length;
  $("mask").hidden = !withMask;
  $("outline").hidden = !outline;
  $("cam").style.opacity = $("mask").style.opacity = opacity;
  $("mark").setAttribute("aria-pressed", String(marks.has(photo.name)));
  if (!$("cam").hidden) drawCam(photo.cams[Number($("cam-class").value)][1]);
}

/** Colours from dark blue through red to yellow. */
function heat(value) {
  const stops = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];
  const at = Math.min(value * 4, 3.9999), first = Math.floor(at), part = at - first;
  return stops[first].map((from, channel) => from + part * (stops[first + 1][channel] - from));
}

async function drawCam(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  if (url !== walked[state.open].cams[Number($("cam-class").value)]?.[1]) return;
  const canvas = $("cam"), context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = image.width;
  canvas.height = image.height;
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const value = pixels.data[at] / 255;
    pixels.data.set([...heat(value), 255 * (0.3 + 0.7 * value)], at);
  }
  context.putImageData(pixels, 0, 0);
}

/** Lines along the borders of the mask's labels, in their colours with a white edge.
 *
 * They are of the mask inside the page: a browser lets no script look into a file beside it.
 */
async function drawOutline(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  if (url !== walked[state.open].mask) return;
  const { width, height } = image;
  const small = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  small.drawImage(image, 0, 0);
  const data = new Uint32Array(small.getImageData(0, 0, width, height).data.buffer);
  const scale = Math.max(1, Math.round(1400 / Math.max(width, height)));
  const canvas = $("outline"), context = canvas.getContext("2d");
  canvas.width = width * scale;
  canvas.height = height * scale;
  const paths = new Map();
  const line = (colour, x0, y0, x1, y1) => {
    if (!paths.has(colour)) paths.set(colour, new Path2D());
    const path = paths.get(colour);
    path.moveTo(x0 * scale, y0 * scale);
    path.lineTo(x1 * scale, y1 * scale);
  };
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const own = data[y * width + x], right = x + 1 < width ? data[y * width + x + 1] : own;
      const below = y + 1 < height ? data[(y + 1) * width + x] : own;
      if (own !== right) line(own >>> 24 ? own : right, x + 1, y, x + 1, y + 1);
      if (own !== below) line(own >>> 24 ? own : below, x, y + 1, x + 1, y + 1);
    }
  }
  context.lineCap = "round";
  for (const [wide, isEdge] of [[5, true], [2.5, false]]) {
    for (const [colour, path] of paths) {
      context.lineWidth = wide;
      context.strokeStyle = isEdge ? "#ffffffe0" : `rgb(${colour & 255}, ${(colour >> 8) & 255}, ${(colour >> 16) & 255})`;
      context.stroke(path);
    }
  }
}

function walk(step) {
  const next = state.open + step;
  if (next < 0 || next >= walked.length) return;
  state.open = next;
  if (walked === state.photos && next >= state.drawn - 1) drawMore();
  showOpen();
}

function switchLayer(name) {
  state.layers[name] = !state.layers[name];
  showLayers();
}

function viewerKeys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isField = event.target.matches("input, select");
  const actions = { m: () => { mark(walked[state.open].name); showLayers(); }, 1: () => !$("show-cam").disabled && switchLayer("cam"), 2: () => switchLayer("mask"), 3: () => switchLayer("outline") };
  if (!isField) Object.assign(actions, { ArrowRight: () => walk(1), ArrowLeft: () => walk(-1) });
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

/** Close, and give the focus to the card of the photograph that was open last. */
function closed() {
  const name = walked[state.open].name;
  const place = walked === state.photos ? $("grid").children[state.open] : null;
  (place ?? [...document.querySelectorAll("#strips .card")].find((one) => one.dataset.name === name))?.focus();
}

// ---- start -------------------------------------------------------------------------------------

function listen() {
  $("theme").onclick = () => { const theme = otherTheme(); store.put("weaktr:theme", theme); showTheme(theme); };
  $("class").onchange = () => choose({ label: Number($("class").value) });
  for (const id of ["order", "which"]) $(id).onchange = showPhotographs;
  for (const [id, other, isWrong] of [["low", "high", (a, b) => a > b], ["high", "low", (a, b) => a < b]]) {
    $(id).oninput = () => {
      if (isWrong(Number($(id).value), Number($(other).value))) $(other).value = $(id).value;
      showPhotographs();
    };
  }
  $("grid-opacity").oninput = () => document.body.style.setProperty("--opacity", $("grid-opacity").value / 100);
  $("filters").onsubmit = (event) => event.preventDefault();
  $("grid").onkeydown = walkCards;
  $("viewer").onkeydown = viewerKeys;
  $("viewer").onclose = closed;
  $("viewer").onclick = (event) => { if (event.target === $("viewer")) $("viewer").close(); };
  $("close").onclick = () => $("viewer").close();
  $("previous").onclick = () => walk(-1);
  $("next").onclick = () => walk(1);
  $("mark").onclick = () => { mark(walked[state.open].name); showLayers(); };
  for (const name of ["cam", "mask", "outline"]) $(`show-${name}`).onclick = () => switchLayer(name);
  $("opacity").oninput = $("cam-class").onchange = showLayers;
  let from = null;
  $("stage").onpointerdown = (event) => { from = event.clientX; };
  $("stage").onpointerup = (event) => {
    if (from !== null && Math.abs(event.clientX - from) > 50) walk(event.clientX < from ? 1 : -1);
    from = null;
  };
  $("copy").onclick = copyMarks;
  $("unmark").onclick = () => [...marks].forEach(mark);
  matchMedia("(prefers-color-scheme: dark)").onchange = () => showTheme(store.get("weaktr:theme"));
  $("show-more").onclick = () => drawOn(false);
  $("show-all").onclick = () => drawOn(true);
}

function start() {
  showTheme(store.get("weaktr:theme"));
  showHeader();
  showWords();
  showScores();
  showCurves();
  showMade();
  const isEmpty = {
    short: !report.words.what.length, scores: !report.sets.length && !report.scores.length, classes: !report.sets.length,
    photographs: !report.photographs.length, marked: !report.photographs.length, curves: !report.curves.length,
  };
  for (const [id, isGone] of Object.entries(isEmpty)) $(id).hidden = isGone;
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    const title = section.querySelector("h2").firstChild.textContent.trim();
    $("links").append(make("a", { href: `#${section.id}` }, title));
  }
  const hasIou = report.photographs.some((photo) => photo.iou !== null);
  $("order").append(...Object.entries(orders).filter(([key]) => key !== "iou" || hasIou).map(([key, { title }]) => make("option", { value: key }, title)));
  $("confidence-range").hidden = !report.photographs.some((photo) => photo.confidence !== null);
  for (const [value, has] of [["edited", (photo) => photo.is_edited], ["empty", (photo) => photo.doubt === "empty"]]) {
    $("which").querySelector(`[value=${value}]`).hidden = !report.photographs.some(has);
  }
  listen();
  if (report.sets.length) choose({});
  showMarks();
}

start();
