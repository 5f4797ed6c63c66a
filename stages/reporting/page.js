// The interactive part of the report: pick a query, one of its results, then a word or a region.
// Every text is set through textContent: captions are data, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const lists = { ...data.queries, foils: data.foils };
  const DIRECTIONS = { t2i: "Text → image", i2t: "Image → text", ...(data.foils.length ? { foils: "One word changed" } : {}) };
  const RANKS = {
    all: ["All", () => true],
    first: ["Rank 1", (q) => q.rank === 1],
    near: ["2–10", (q) => q.rank > 1 && q.rank <= 10],
    far: ["Above 10", (q) => q.rank > 10],
    worst: ["Worst", (q) => q.worst],
  };
  const KINDS = {
    all: ["All", () => true],
    lost: ["Foil wins", (q) => !q.won],
    ...Object.fromEntries([...new Set(data.foils.map((q) => q.kind))].map((kind) => [kind, [kind, (q) => q.kind === kind]])),
  };
  const state = { direction: "t2i", query: 0, result: 0, word: null, region: null, filter: "all", text: "" };

  const picture = (id, attributes = {}) =>
    make("img", { src: data.images[id].uri, alt: data.images[id].alt, ...attributes });
  const queries = () => lists[state.direction];
  const filters = () => (state.direction === "foils" ? KINDS : RANKS);
  const percent = (share) => `${share >= 0.0995 || share === 0 ? (100 * share).toFixed(0) : (100 * share).toFixed(1)} %`;
  const gateText = (gate) => (gate < 0.005 ? "0" : gate.toFixed(2).replace(/^0/, ""));

  function shownQueries() {
    const wanted = state.text.trim().toLowerCase();
    return queries().filter((q) => filters()[state.filter][1](q) && (!wanted || q.search.includes(wanted)));
  }

  // ---- the controls -------------------------------------------------------------------------------------------
  function drawControls() {
    byId("directions").replaceChildren(
      ...Object.entries(DIRECTIONS).map(([key, name]) =>
        make("button", { type: "button", "aria-pressed": String(key === state.direction), "data-direction": key,
          onclick: () => select({ direction: key, query: 0, filter: "all" }) }, name)));
    byId("filters").replaceChildren(
      ...Object.entries(filters()).map(([key, [name, keep]]) => {
        const count = queries().filter(keep).length;
        return make("button", { type: "button", "aria-pressed": String(key === state.filter), "data-filter": key,
          disabled: count === 0, onclick: () => filter({ filter: key }) }, `${name} (${count})`);
      }));
  }

  function filter(change) {
    Object.assign(state, change);
    const shown = shownQueries();
    if (shown.length && !shown.includes(queries()[state.query])) return select({ query: queries().indexOf(shown[0]) });
    drawControls();
    drawQueries();
  }

  function drawQueries() {
    const shown = shownQueries();
    byId("filters").setAttribute("aria-label", state.direction === "foils" ? "Kind of foil" : "Rank of the right answer");
    byId("shown").textContent = `${shown.length} of ${queries().length} ${state.direction === "foils" ? "foils" : "queries"}`;
    byId("queries").replaceChildren(
      ...shown.map((query) => {
        const index = queries().indexOf(query);
        return make("li", {},
          make("button", { type: "button", class: "query", "data-query": query.key,
            "aria-current": index === state.query ? "true" : null, onclick: () => select({ query: index }, true) },
          query.image ? picture(query.image) : null,
          make("span", {}, make("span", { class: "words" }, ...inList(query)), rankChip(query),
            query.worst ? " " : null, query.worst ? make("small", {}, "worst") : null)));
      }),
      ...(shown.length ? [] : [make("li", { class: "nothing" }, "No query fits.")]));
    // Only the list itself may scroll; scrollIntoView would move the page too.
    const list = byId("queries"), current = list.querySelector("[aria-current]");
    if (current) {
      const at = current.getBoundingClientRect(), box = list.getBoundingClientRect();
      if (at.top < box.top || at.bottom > box.bottom) list.scrollTop += at.top - box.top - 4;
      if (at.left < box.left || at.right > box.right) list.scrollLeft += at.left - box.left - 4;
    }
  }

  // ---- the selected query -------------------------------------------------------------------------------------
  const share = (values, index) => (values ? values[index] / 1000 : null);

  /** What the boxes show now: values by region, how to write one, and whether they fill their range of 0 to 1. */
  function boxView(pair) {
    if (state.word !== null && pair.wordAttention) {
      return { kind: "look", title: `Where “${pair.words[state.word]}” looks`, values: pair.wordAttention[state.word], write: percent };
    }
    if (pair.regionGates) return { kind: "gates", title: "Gate of each region", values: pair.regionGates, write: gateText, full: true };
    if (pair.regionPooling) return { kind: "gates", title: "Weight of each region in the match", values: pair.regionPooling, write: percent };
    const none = data.images[pair.image].labels.map(() => 0);
    return { kind: "gates", title: "This model gives regions no weights", values: none, write: () => "" };
  }

  /** [value, region] of a view, the strongest first. */
  const ranked = (view) => view.values.map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]);

  function drawStage(pair) {
    const image = data.images[pair.image];
    const view = boxView(pair);
    const top = Math.max(...view.values, 1);
    const svg = make("svg", { viewBox: `0 0 ${image.w} ${image.h}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    // What counts stays as it is and the rest is dimmed: a tint would change the very colours that captions name.
    const all = { width: image.w, height: image.h };
    const mask = make("mask", { id: "dim" }, make("rect", { ...all, fill: "#fff" }));
    const boxes = [];
    // The smallest box lies on top, so that each can be clicked.
    const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
    const order = view.values.map((value, index) => [value, index])
      .sort((a, b) => area(image.boxes[b[1]]) - area(image.boxes[a[1]]));
    const strongest = new Set(ranked(view).slice(0, 4).map(([, index]) => index));
    for (const [value, index] of order) {
      const [x0, y0, x1, y1] = image.boxes[index];
      if (x1 <= x0 || y1 <= y0) continue; // features that came without boxes
      const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
      // Attention is a share of 1: it is drawn against the strongest region. A gate is drawn as it is.
      const strength = view.full ? value / 1000 : value / top;
      mask.append(make("rect", { ...place, "data-region": index, style: `fill-opacity:${strength.toFixed(3)}` }));
      const strong = strongest.has(index) && index !== state.region;
      const style = `stroke-opacity:${((strong ? 0.4 : 0.1) + (strong ? 0.6 : 0.3) * strength).toFixed(3)}`;
      if (strong) boxes.push(make("rect", { class: "halo", style, ...place }));
      boxes.push(make("rect", { class: `box${index === state.region ? " chosen" : strong ? " strong" : ""}`, style, ...place,
        "data-region": index, onclick: () => toggle("region", index) },
      make("title", {}, `${image.labels[index]}: ${view.write(value / 1000)}`)));
    }
    svg.append(mask, make("rect", { class: "shade", mask: "url(#dim)", ...all }), ...boxes);
    return make("figure", {},
      make("div", { class: `picture ${view.kind}`, style: `max-width:${Math.round((440 * image.w) / image.h)}px` },
        picture(pair.image, { width: image.w, height: image.h }), svg),
      make("figcaption", { class: `key ${view.kind}` }, make("i", {}),
        `${view.title}: ${view.full ? "dimmed 0, clear 1" : "the clearer, the more"}`));
  }

  function drawWords(pair) {
    const given = state.region === null ? null : pair.regionAttention?.[state.region];
    const most = given ? Math.max(...given, 1) : 1;
    return make("div", { class: "words-row", role: "group", "aria-label": "Words of the caption", onkeydown: arrows },
      ...pair.words.map((word, index) => {
        const gate = share(pair.wordGates, index);
        const marks = marksOf(queries()[state.query], pair, index);
        const spoken = [word, ...marks, ...(gate === null ? [] : [`gate ${gate.toFixed(2)}`])].join(", ");
        return make("button", { type: "button", class: ["word", pair.unknown.includes(index) && "unknown", ...marks].filter(Boolean).join(" "),
          "data-word": index,
          "aria-pressed": String(state.word === index), "aria-label": spoken,
          title: pair.unknown.includes(index) ? "not in the vocabulary" : null,
          style: given ? `--given:${(given[index] / most).toFixed(3)}` : null, onclick: () => toggle("word", index) },
        make("span", {}, word),
        gate === null ? null : make("span", { class: "bar" }, make("b", { style: `width:${(100 * gate).toFixed(1)}%` })),
        gate === null ? null : make("span", { class: "num" }, gateText(gate)),
        marks.length ? make("span", { class: "mark" }, marks.join(" · ")) : null);
      }));
  }

  function sentence(pair) {
    if (state.word !== null) {
      const word = pair.words[state.word];
      const gate = share(pair.wordGates, state.word);
      const weight = pair.wordPooling
        ? `It has ${percent(pair.wordPooling[state.word] / 1000)} of the words' weight in the match.` : "";
      if (!pair.wordAttention) return `“${word}”: this model sends no messages to words. ${weight}`;
      return `“${word}” takes its message from the regions listed` +
        (gate === null ? ". " : `, through a gate of ${gate.toFixed(2)}. `) + weight;
    }
    if (state.region !== null) {
      const gate = share(pair.regionGates, state.region);
      const label = data.images[pair.image].labels[state.region];
      if (!pair.regionAttention) return `${label}: this model sends no messages to regions.`;
      return `${label}: the more coloured a word, the more of it this region takes` +
        (gate === null ? "." : `, through a gate of ${gate.toFixed(2)}.`);
    }
    return pair.wordGates ? "Under each word stands its gate. Pick a word to see where it looks, or a region to see what it reads."
      : "Pick a word to see where it looks, or a region to see what it reads.";
  }

  function drawRegions(pair) {
    const view = boxView(pair);
    const labels = data.images[pair.image].labels;
    const first = ranked(view).slice(0, 6);
    const top = view.full ? 1000 : Math.max(first[0][0], 1);
    return make("div", { class: "reading" }, make("p", { class: "label" }, `${view.title}, strongest ${first.length}`),
      make("ol", { class: `regions ${view.kind}` }, ...first.map(([value, index]) =>
        make("li", {}, make("button", { type: "button", class: "region", "data-region": index,
          "aria-pressed": String(state.region === index), onclick: () => toggle("region", index) },
        make("span", { class: "what" }, labels[index]),
        make("span", { class: "bar" }, make("b", { style: `width:${(100 * value / top).toFixed(1)}%` })),
        make("span", { class: "num" }, view.write(value / 1000)))))));
  }

  function drawResults(query) {
    const pictures = query.image === null;
    return make("div", { class: `results ${pictures ? "pictures" : "captions"}` },
      make("p", { class: "label" }, isFoil(query) ? "Caption and foil" : "What the model ranks first"),
      make("ol", { onkeydown: arrows }, ...query.results.map((pair, index) => {
        const place = isFoil(query) && pair.right ? null : make("span", { class: "at" }, isFoil(query) ? "foil" : `${pair.at}.`);
        const tick = pair.right ? make("span", { class: "tick" }, isFoil(query) ? "✓ caption" : "✓ right") : null;
        const score = make("span", { class: "score" }, scoreText(pair.score));
        const attributes = { type: "button", class: `result${pair.right ? " right" : ""}`, "data-result": index,
          "aria-pressed": String(state.result === index), onclick: () => choose({ result: index }) };
        return make("li", { class: pair.beyond ? "beyond" : null },
          pictures
            ? make("button", attributes, picture(pair.image), make("span", { class: "meta" }, place, tick, score))
            : make("button", attributes, make("span", { class: "meta" }, place, tick, score), make("span", { class: "words" }, pair.text)));
      })));
  }

  function drawDetail() {
    const query = queries()[state.query];
    const pair = query.results[state.result];
    byId("detail").replaceChildren(
      make("div", { class: "detail-head" },
        make("h3", {}, title(query)), rankChip(query),
        make("span", { class: "id" }, query.image && !isFoil(query) ? `image ${query.id}` : `caption ${query.id}`)),
      make("div", { class: "pair" },
        make("div", {}, drawStage(pair), drawRegions(pair)),
        make("div", {},
          make("div", { class: "caption" },
            make("p", { class: "label" }, pair.right ? "Caption of the pair, ✓ right" : isFoil(query) ? "Foil" : "Caption of the pair, not a match"),
            drawWords(pair), make("p", { class: "say", role: "status" }, sentence(pair)),
            isFoil(query) && !pair.right ? make("p", { class: "verdict" }, verdict(query)) : null),
          drawResults(query))));
  }

  // ---- moving about -------------------------------------------------------------------------------------------
  /** Arrow keys walk along a group of buttons. */
  function arrows(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...event.currentTarget.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    buttons[(at + step + buttons.length) % buttons.length].focus();
  }

  const hash = () => `#${queries()[state.query].key}` +
    (state.result !== opening(queries()[state.query]).result ? `/${state.result}` : "") +
    (state.word === null ? "" : `/w${state.word}`) + (state.region === null ? "" : `/r${state.region}`);

  /** Draw the selected query anew; focus stays on the control that had it. */
  function choose(change) {
    if ("result" in change) Object.assign(state, { word: null, region: null });
    Object.assign(state, change);
    const held = document.activeElement?.closest("#detail") ? document.activeElement : null;
    const name = held && ["word", "result", "region"].find((key) => key in held.dataset);
    const again = name && `button[data-${name}="${held.dataset[name]}"]`;
    drawDetail();
    if (again) byId("detail").querySelector(again)?.focus({ preventScroll: true });
    history.replaceState(null, "", hash());
  }

  function toggle(what, index) {
    choose({ word: null, region: null, [what]: state[what] === index ? null : index });
  }

  function select(change, reveal = false) {
    const held = document.activeElement?.dataset ?? {};
    const again = held.query ? `[data-query="${held.query}"]` : held.direction ? `[data-direction="${held.direction}"]`
      : held.filter ? `[data-filter="${held.filter}"]` : null;
    Object.assign(state, change);
    const open = { ...opening(queries()[state.query]), ...("result" in change ? { result: change.result, word: null } : {}) };
    drawControls();
    drawQueries();
    choose(open);
    if (again) document.querySelector(again)?.focus({ preventScroll: true });
    if (reveal && window.innerWidth <= 860) byId("detail").scrollIntoView({ block: "nearest" });
  }

  /** `#t2i-3/1/w4`: the fourth query, its second result, its fifth word. False where the address names no query. */
  function follow() {
    const [key, ...rest] = location.hash.slice(1).split("/");
    const direction = key.split("-")[0];
    if (!(direction in DIRECTIONS)) return false;
    const index = lists[direction].findIndex((query) => query.key === key);
    if (index < 0) return false;
    const number = (pattern) => rest.map((part) => part.match(pattern)).filter(Boolean).map((match) => Number(match[1]))[0];
    const results = lists[direction][index].results;
    const result = Math.min(number(/^(\d+)$/) ?? opening(lists[direction][index]).result, results.length - 1);
    const word = number(/^w(\d+)$/), region = number(/^r(\d+)$/);
    select({ direction, query: index, filter: "all", text: "", ...(rest.length ? { result } : {}) });
    byId("search").value = "";
    if (word < results[result].words.length) choose({ word });
    else if (region < data.images[results[result].image].boxes.length) choose({ region });
    byId("explore").scrollIntoView();
    return true;
  }

  for (const image of document.querySelectorAll("img[data-image]")) image.src = data.images[image.dataset.image].uri;
  for (const part of document.querySelectorAll(".controls, .explorer")) part.hidden = false;
  byId("search").addEventListener("input", (event) => filter({ text: event.target.value }));
  window.addEventListener("hashchange", follow);
  if (!follow()) {
    const address = location.hash;
    select({ direction: data.queries.t2i.length ? "t2i" : "i2t", query: 0 });
    history.replaceState(null, "", address || location.pathname + location.search);
  }
  document.documentElement.dataset.ready = "true";
})();
