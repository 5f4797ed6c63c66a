"use strict";
// Draws how the model came to the score of an image and a sentence: the picture with its boxes, the words with their
// gates, what a picked word or region says, the strongest regions. Every text is set through textContent: it is data.
//
// A view is {pair, image, word, region, toggle, marks}: `pair` of explain_pairs (stages/pair_view/details.py); `image`
// {uri, alt, w, h, boxes, labels}, boxes XYXY in its pixels; the picked word's and region's index, or null;
// toggle("word" | "region", index); marks(index), what is special about a word, as names of classes. With `undimmed`
// lines alone tell how much regions count, until a word or a region is picked.
/** A new element: attributes by name, `on*` as listeners, children as nodes or texts. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "mask", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    // Not the attribute: a policy that forbids inline styles forbids that, too.
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const percent = (share) => `${share >= 0.0995 || share === 0 ? (100 * share).toFixed(0) : (100 * share).toFixed(1)} %`;
const gateText = (gate) => (gate < 0.005 ? "0" : gate.toFixed(2).replace(/^0/, ""));
const shareOf = (values, index) => (values ? values[index] / 1000 : null);

/** The matching score, its logit in brackets: a score near 1 alone would not tell results apart. */
function scoreText(logit) {
  const m = 1 / (1 + Math.exp(-logit));
  return `m ${m > 0.9995 ? "> .999" : m < 0.0005 ? "< .001" : m.toFixed(3).replace(/^0/, "")} (${logit.toFixed(1).replace(/^-0\.0$/, "0.0")})`;
}

const pictureOf = (image, attributes = {}) => make("img", { src: image.uri, alt: image.alt, ...attributes });

const LISTED = 6;

/** How the highest value is written, and how many values are written so. */
const highestOf = ({ values, write }) => {
  const text = write(Math.max(...values) / 1000);
  return [text, values.filter((value) => write(value / 1000) === text).length];
};

/** What the boxes show: values by region, how to write one, and whether they fill their range of 0 to 1. */
function boxView({ pair, image, word }) {
  if (word !== null && pair.wordAttention) {
    return { kind: "look", title: `Where “${pair.words[word]}” looks`, values: pair.wordAttention[word], write: percent };
  }
  const gates = { kind: "gates", title: "Gate of each region", values: pair.regionGates, write: gateText, full: true };
  const weights = { kind: "gates", title: "Weight of each region in the match", values: pair.regionPooling, write: percent };
  if (pair.regionGates) {
    const [text, count] = highestOf(gates);
    // Gates that are all open single out no region; gates that are all closed say that nothing matches.
    if (!pair.regionPooling || count <= LISTED || text === gateText(0)) return gates;
    return { ...weights, title: `${weights.title} (${count === gates.values.length ? "every gate is" : `${count} gates are`} ${text})` };
  }
  if (pair.regionPooling) return weights;
  const none = image.labels.map(() => 0);
  return { kind: "gates", title: "This model gives regions no weights", values: none, write: () => "" };
}

/** [value, region] of a box view, the strongest first. */
const ranked = (boxes) => boxes.values.map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]);

/** The picture: what counts stays as it is and the rest is dimmed. */
function drawStage(view) {
  const { image, region } = view;
  const shown = boxView(view);
  const dims = !view.undimmed || view.word !== null || region !== null;
  const top = Math.max(...shown.values, 1);
  const svg = make("svg", { viewBox: `0 0 ${image.w} ${image.h}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  // A tint instead would change the very colours that captions name.
  const all = { width: image.w, height: image.h };
  const mask = make("mask", { id: "dim" }, make("rect", { ...all, fill: "#fff" }));
  const boxes = [];
  // The smallest box lies on top, so that each can be clicked.
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const order = shown.values.map((value, index) => [value, index])
    .sort((a, b) => area(image.boxes[b[1]]) - area(image.boxes[a[1]]));
  const strongest = new Set(highestOf(shown)[1] > LISTED ? [] : ranked(shown).slice(0, 4).map(([, index]) => index));
  for (const [value, index] of order) {
    const [x0, y0, x1, y1] = image.boxes[index];
    if (x1 <= x0 || y1 <= y0) continue; // features that came without boxes
    const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
    // Attention is a share of 1: it is drawn against the strongest region. A gate is drawn as it is.
    const strength = shown.full ? value / 1000 : value / top;
    mask.append(make("rect", { ...place, "data-region": index, style: `fill-opacity:${strength.toFixed(3)}` }));
    const strong = strongest.has(index) && index !== region;
    const style = `stroke-opacity:${((strong ? 0.4 : 0.1) + (strong ? 0.6 : 0.3) * strength).toFixed(3)}`;
    if (strong) boxes.push(make("rect", { class: "halo", style, ...place }));
    boxes.push(make("rect", { class: `box${index === region ? " chosen" : strong ? " strong" : ""}`, style, ...place,
      "data-region": index, onclick: () => view.toggle("region", index) },
    make("title", {}, `${image.labels[index]}: ${shown.write(value / 1000)}`)));
  }
  if (dims) svg.append(mask, make("rect", { class: "shade", mask: "url(#dim)", ...all }));
  svg.append(...boxes);
  return make("figure", {},
    make("div", { class: `picture ${shown.kind}`, style: `max-width:${Math.round((440 * image.w) / image.h)}px;--ratio:${image.w / image.h}` },
      pictureOf(image, { width: image.w, height: image.h }), svg),
    make("figcaption", { class: `key ${shown.kind}` }, dims ? make("i", {}) : null,
      `${shown.title}: ${!dims ? "the stronger its line, the more" : shown.full ? "dimmed 0, clear 1" : "the clearer, the more"}`));
}

function drawWords(view) {
  const { pair } = view;
  const given = view.region === null ? null : pair.regionAttention?.[view.region];
  const most = given ? Math.max(...given, 1) : 1;
  return make("div", { class: "words-row", dir: "auto", lang: "", role: "group", "aria-label": "Words of the caption", onkeydown: walkWithArrows },
    ...pair.words.map((word, index) => {
      const gate = shareOf(pair.wordGates, index);
      const marks = view.marks(index);
      const spoken = [word, ...marks, ...(gate === null ? [] : [`gate ${gateText(gate)}`])].join(", ");
      return make("button", { type: "button", class: ["word", pair.unknown.includes(index) && "unknown", ...marks].filter(Boolean).join(" "),
        "data-word": index,
        "aria-pressed": String(view.word === index), "aria-label": spoken,
        title: pair.unknown.includes(index) ? "the model does not know this word" : null,
        style: given ? `--given:${(given[index] / most).toFixed(3)}` : null, onclick: () => view.toggle("word", index) },
      make("span", {}, word),
      gate === null ? null : make("span", { class: "bar" }, make("b", { style: `width:${(100 * gate).toFixed(1)}%` })),
      gate === null ? null : make("span", { class: "num", dir: "ltr" }, gateText(gate)),
      marks.length ? make("span", { class: "mark" }, marks.join(" · ")) : null);
    }));
}

/** What the picked word or region says, as a sentence. */
function sentenceOf({ pair, image, word, region }) {
  if (word !== null) {
    const text = pair.words[word];
    const gate = shareOf(pair.wordGates, word);
    const weight = pair.wordPooling ? `It has ${percent(pair.wordPooling[word] / 1000)} of the words' weight in the match.` : "";
    if (!pair.wordAttention) return `“${text}”: this model sends no messages to words. ${weight}`;
    return `“${text}” takes its message from the regions that stay clear` +
      (gate === null ? ". " : `, through a gate of ${gate.toFixed(2)}. `) + weight;
  }
  if (region !== null) {
    const gate = shareOf(pair.regionGates, region);
    const label = image.labels[region];
    if (!pair.regionAttention) return `${label}: this model sends no messages to regions.`;
    return `${label}: the more coloured a word, the more of it this region takes` +
      (gate === null ? "." : `, through a gate of ${gate.toFixed(2)}.`);
  }
  return pair.wordGates ? "Under each word stands its gate. Pick a word to see where it looks, or a region to see what it reads."
    : "Pick a word to see where it looks, or a region to see what it reads.";
}

function drawRegions(view) {
  const shown = boxView(view);
  const first = ranked(shown).slice(0, LISTED);
  const top = shown.full ? 1000 : Math.max(first[0][0], 1);
  const [text, count] = highestOf(shown);
  const heading = count < shown.values.length ? `, strongest ${first.length}` : text && `: ${text} of each`;
  return make("div", { class: "reading" }, make("p", { class: "label" }, `${shown.title}${heading}`),
    make("ol", { class: `regions ${shown.kind}` }, ...first.map(([value, index]) =>
      make("li", {}, make("button", { type: "button", class: "region", "data-region": index,
        "aria-pressed": String(view.region === index), onclick: () => view.toggle("region", index) },
      make("span", { class: "what" }, view.image.labels[index]),
      make("span", { class: "bar" }, make("b", { style: `width:${(100 * value / top).toFixed(1)}%` })),
      make("span", { class: "num" }, shown.write(value / 1000)))))));
}

/** Arrow keys walk along a group of buttons or links. */
function walkWithArrows(event) {
  const right = getComputedStyle(event.currentTarget).direction === "rtl" ? -1 : 1;
  const step = { ArrowRight: right, ArrowDown: 1, ArrowLeft: -right, ArrowUp: -1 }[event.key];
  const stops = [...event.currentTarget.querySelectorAll("button, a")];
  const at = stops.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  stops[(at + step + stops.length) % stops.length].focus();
}
