"use strict";
// The search page beyond what works without scripts: rows on scrolling, a dropped picture, progress, keys.
(() => {
  const byId = (id) => document.getElementById(id);
  function failed(message) {
    Object.assign(byId("failed"), { textContent: message, hidden: !message });
    if (message) byId("failed").scrollIntoView({ block: "nearest" });
  }

  /** What the server says, as text of a page's part; an Error with its reason where it refuses. */
  async function ask(path, options = {}) {
    const answer = await fetch(path, options).catch(() => { throw new Error("the server does not answer. Is it still running?"); });
    const text = await answer.text();
    if (answer.ok) return text;
    let reason = `the server answered ${answer.status}`;
    try { reason = JSON.parse(text).error ?? reason; } catch { /* no JSON: the status must do */ }
    throw Object.assign(new Error(reason), { status: answer.status });
  }

  // ---- one more row on scrolling -------------------------------------------------------------------------------
  const columns = (list) => getComputedStyle(list).gridTemplateColumns.split(" ").length;
  let filling = false, resting = 0;
  let rounds = 1; // scrolling ends after as many rounds, so that what is below the list can be reached

  /** Puts whole rows at the end of the list until the window and a little more are full, or the rounds are over. */
  async function fill() {
    const list = byId("tiles"), more = byId("more");
    if (filling || !list || !more || list.dataset.more !== "yes" || Date.now() < resting) return;
    filling = true;
    try {
      while (more.isConnected && more.getBoundingClientRect().top < innerHeight + 400) {
        const across = columns(list), have = list.children.length;
        if (have >= rounds * Number(list.dataset.round)) return;
        const count = across - (have % across);
        const rows = await ask(`/rows?${new URLSearchParams({ q: list.dataset.q, offset: have, count, version: list.dataset.version })}`);
        list.insertAdjacentHTML("beforeend", rows); // the server's own, in which every text is escaped
        more.querySelector("span")?.remove();
        if (list.children.length < have + count) {
          list.dataset.more = "no";
          more.remove();
          return;
        }
      }
    } catch (error) { // tried again on scrolling in a while, or by the link
      resting = Date.now() + 5000;
      if (error.status === 409) list.dataset.more = "no"; // the link opens the list anew
      const said = more.querySelector("span") ?? more.appendChild(document.createElement("span"));
      said.textContent = ` No more came: ${error.message}`;
    } finally {
      filling = false;
    }
  }

  // ---- a picture that somebody drops, chooses or pastes ----------------------------------------------------------
  const shown = new Map(); // number of a history entry -> what it shows, for nothing of a dropped picture is kept elsewhere
  if (history.state?.dropped) history.replaceState(null, "", "/"); // loaded anew: what it showed is gone
  shown.set(0, { nodes: null, title: document.title, sentence: byId("q").value, top: 0 });
  let current = 0;

  function show(number) {
    const before = shown.get(current), entry = shown.get(number);
    Object.assign(before, { nodes: [...byId("answer").childNodes], top: scrollY });
    byId("answer").replaceChildren(...entry.nodes);
    document.title = entry.title;
    byId("q").value = entry.sentence;
    current = number;
    scrollTo(0, entry.top);
  }

  async function searchBy(file) {
    failed("");
    const limit = Number(document.documentElement.dataset.maxUpload);
    if (file.size > limit) return failed(`The picture has ${(file.size / 1e6).toFixed(0)} MB; at most ${limit / 1e6} MB can be sent.`);
    document.body.classList.add("busy");
    byId("answer").setAttribute("aria-busy", "true");
    byId("spoken").textContent = "Looking at your picture…";
    try {
      const sent = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
      const parsed = new DOMParser().parseFromString(await ask("/like", sent), "text/html");
      const own = document.createElement("img");
      Object.assign(own, { src: URL.createObjectURL(file), alt: "the picture that you sent" });
      const beside = document.createElement("div");
      const sought = document.createElement("div");
      sought.className = "sought";
      sought.append(own, beside);
      const number = shown.size;
      const heading = document.createElement("h1");
      Object.assign(heading, { className: "lead", textContent: "Like a picture of yours" });
      shown.set(number, { nodes: [heading, sought, ...parsed.body.children], title: "Like a picture of yours · CAMP search", sentence: "", top: 0 });
      history.pushState({ dropped: number }, "", "/#dropped");
      show(number);
      byId("main").focus({ preventScroll: true });
      ask("/captions", sent).then(
        (captions) => { beside.innerHTML = captions; }, // the server's own, in which every text is escaped
        (error) => { beside.textContent = `No captions came: ${error.message}`; },
      );
    } catch (error) {
      failed(`The picture could not be searched by: ${error.message}`);
    } finally {
      document.body.classList.remove("busy");
      byId("answer").removeAttribute("aria-busy");
      byId("spoken").textContent = "";
    }
  }

  addEventListener("popstate", (event) => {
    const number = event.state?.dropped ?? 0;
    if (number === current) return;
    if (shown.get(number)?.nodes) show(number);
    else location.reload();
  });

  const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    byId("veil").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) byId("veil").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    byId("veil").hidden = true;
    if (event.dataTransfer.items[0]?.webkitGetAsEntry?.()?.isDirectory) failed("A folder cannot be searched by: drop a picture.");
    else if (event.dataTransfer.files.length) searchBy(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    // Office programs put a picture of the text beside it.
    if (event.target === byId("q") && event.clipboardData?.types.includes("text/plain")) return;
    const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
    if (file) searchBy(file);
  });
  byId("choose").hidden = false;
  if (byId("or-drop")) byId("or-drop").hidden = false;
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) searchBy(event.target.files[0]);
    event.target.value = "";
  });

  // ---- progress of indexing --------------------------------------------------------------------------------------
  async function watch() {
    const box = byId("progress");
    const { version } = byId("tiles").dataset;
    let spoken = "";
    for (;;) {
      await new Promise((wake) => setTimeout(wake, document.hidden ? 5000 : 1000));
      const bar = box.querySelector("progress");
      let health;
      try {
        health = JSON.parse(await ask("/api/health"));
      } catch (error) { // a server that is away may come back
        bar.hidden = true;
        box.querySelector("p").textContent = error.message.replace(/^t/, "T");
        continue;
      }
      Object.assign(bar, { max: health.total || 1, value: health.ready, hidden: !health.indexing });
      box.querySelector("p").textContent = health.progress;
      const tenths = `${Math.floor(10 * health.ready / (health.total || 1))} ${health.problem}`;
      if (tenths !== spoken || !health.indexing && !health.problem) byId("spoken").textContent = health.progress;
      spoken = tenths;
      byId("again").hidden = health.version === version;
      if (byId("count") && health.ready) byId("count").textContent = health.ready === 1 ? "1 picture" : `${health.ready.toLocaleString("en")} pictures`;
      if (!health.indexing && !health.problem) return; // what has stopped is tried again
    }
  }

  // ---- keys ------------------------------------------------------------------------------------------------------
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const box = byId("q"), list = byId("answer").querySelector(".tiles");
    if (event.key === "/" && document.activeElement !== box) {
      event.preventDefault();
      box.focus();
      box.select();
    } else if (event.key === "ArrowDown" && document.activeElement === box && list?.children.length) {
      event.preventDefault();
      list.querySelector("a").focus();
    } else if (event.key.startsWith("Arrow")) {
      walk(event, list);
    }
  });

  /** Arrow keys walk over the pictures as they lie; above the first row is the search box. */
  function walk(event, list) {
    const links = list ? [...list.querySelectorAll("a")] : [];
    const at = links.indexOf(document.activeElement);
    if (at < 0) return;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(list), ArrowUp: -columns(list) }[event.key];
    const next = at + step;
    event.preventDefault();
    if (next < 0 && event.key === "ArrowUp") byId("q").focus();
    else links[Math.min(Math.max(next, 0), links.length - 1)].focus();
  }

  if (byId("more")) {
    addEventListener("scroll", fill, { passive: true });
    addEventListener("resize", fill);
    byId("more").addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || byId("tiles").dataset.more !== "yes") return;
      event.preventDefault();
      resting = 0;
      rounds = 1 + Math.ceil(byId("tiles").children.length / Number(byId("tiles").dataset.round));
      fill();
    });
    fill();
  }
  if (!byId("progress").hidden) watch();
  document.documentElement.dataset.ready = "true";
})();
