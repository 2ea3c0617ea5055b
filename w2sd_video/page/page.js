"use strict";

const BYTES_KEPT = 256 * 2 ** 20; // of decoded frames
const GROUPS_A_PAGE = 12;
const SMALL = 300; // pixels of width below which frames are enlarged without blur

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// ---------------------------------------------------------------- tables

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.onclick = () => {
      const before = head.getAttribute("aria-sort"); // at first the best comes first
      const ascending = before ? before === "descending" : head.dataset.better !== "higher";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const order = (a, b) => {
        if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
        return a - b;
      };
      const rows = [...table.tBodies[0].rows];
      const known = rows.filter((row) => !Number.isNaN(key(row))).sort((a, b) => order(key(a), key(b)) * (ascending ? 1 : -1));
      table.tBodies[0].append(...known, ...rows.filter((row) => Number.isNaN(key(row)))); // what is no number comes last
    };
  });
}

// ---------------------------------------------------------------- frames

let bytesKept = 0;

/** The frames of one file, decoded when they are asked for. A seek to the middle of a frame is exact. */
class Source {
  constructor(clip) {
    this.clip = clip;
    this.pictures = new Map();
    this.fault = "";
  }

  /** Return what can be drawn for a frame, the last one for any after it; null for a file that cannot be shown. */
  async frame(number) {
    const k = Math.min(number, this.clip.frames - 1);
    if (!this.pictures.has(k)) {
      const decoded = this.clip.kind === "video" ? this.ofVideo(k) : this.ofPictures(k);
      this.pictures.set(k, decoded.catch((error) => ((this.fault = error.message), null)));
      const picture = await this.pictures.get(k);
      const bytes = picture ? 4 * picture.width * picture.height : 0;
      if (picture === this.video || bytesKept + bytes > BYTES_KEPT) this.pictures.delete(k);
      else bytesKept += bytes;
      return picture;
    }
    return this.pictures.get(k);
  }

  async ofPictures(k) {
    const image = element("img", { src: this.clip.files[k] });
    await image.decode().catch(() => { throw new Error("this picture cannot be shown"); });
    return image;
  }

  async ofVideo(k) {
    this.opened ??= this.open();
    const video = this.video;
    await this.opened;
    if (!video.videoWidth) return null; // it was closed in the meantime
    const settled = new Promise((resolve) => {
      for (const name of ["seeked", "error", "emptied"]) video.addEventListener(name, resolve, { once: true });
    });
    video.currentTime = (k + 0.5) / this.clip.fps;
    await settled;
    if (!video.videoWidth) return null;
    if (bytesKept + 4 * video.videoWidth * video.videoHeight > BYTES_KEPT) return video;
    return createImageBitmap(video);
  }

  open() {
    this.video = element("video", { muted: true, playsInline: true, preload: "auto" });
    return new Promise((resolve, reject) => {
      this.video.onloadeddata = resolve;
      this.video.onemptied = resolve;
      this.video.onerror = () => reject(new Error("this video cannot be played"));
      this.video.src = this.clip.files[0];
    });
  }

  /** Free what is kept; the frames can be asked for again. */
  async close() {
    const pictures = [...this.pictures.values()];
    this.pictures.clear();
    if (this.video) {
      this.video.onerror = null;
      this.video.removeAttribute("src");
      this.video.load();
    }
    const video = this.video;
    this.video = this.opened = undefined;
    for (const picture of await Promise.all(pictures)) {
      if (!picture || picture === video) continue;
      bytesKept -= 4 * picture.width * picture.height;
      picture.close?.();
    }
  }
}

/** A canvas that shows a clip, or the part of its file that is the clip. */
class View {
  constructor(canvas, clip, source) {
    Object.assign(this, { canvas, clip, source });
  }

  draw(picture, number) {
    if (!picture) {
      this.canvas.dispatchEvent(new CustomEvent("fault", { detail: this.source.fault }));
      return;
    }
    const size = [picture.videoWidth || picture.naturalWidth || picture.width, picture.videoHeight || picture.naturalHeight || picture.height];
    const [left, top, width, height] = this.clip.box ?? [0, 0, ...size];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    this.canvas.classList.toggle("small", width < SMALL);
    this.canvas.getContext("2d").drawImage(picture, left, top, width, height, 0, 0, width, height);
    this.canvas.dataset.frame = Math.min(number, this.clip.frames - 1);
  }
}

// ---------------------------------------------------------------- one clock for all clips

const nearViews = new Set(); // of the page, near the screen
let dialogViews = null; // of the dialog that is open, which are shown alone
let changes = 0;
let wanted = 0;
let drawing = null;
let playing = null; // stands for the one loop that plays

const views = () => dialogViews ?? [...nearViews];
const frameCount = () => Math.max(1, ...views().map((view) => view.clip.frames));

/** Show a frame of all clips: none is drawn before all are decoded. The last frame that is asked for is shown in the end. */
function show(number) {
  wanted = number;
  drawing ??= (async () => {
    let number, change;
    do {
      [number, change] = [wanted, changes];
      const current = views();
      const pictures = await Promise.all(current.map((view) => view.source.frame(number)));
      if (change === changes) current.forEach((view, i) => view.draw(pictures[i], number));
    } while (number !== wanted || change !== changes);
    barAt(number);
    drawing = null;
  })();
  return drawing;
}

function barAt(number) {
  const count = frameCount();
  $("bar").hidden = count === 1;
  $("time").max = count - 1;
  $("time").value = number;
  $("frame").textContent = `${Math.min(number, count - 1) + 1} of ${count}`;
}

/** Show what has changed: views that came or went. */
function showAnew() {
  changes += 1;
  return show(Math.min(wanted, frameCount() - 1));
}

async function play() {
  const mine = (playing = {});
  $("play").textContent = "❚❚";
  $("play").ariaLabel = "Pause";
  let due = performance.now();
  while (playing === mine) {
    await show((wanted + 1) % frameCount());
    const [first] = views();
    due = Math.max(due + 1000 / ((first?.clip.fps ?? 8) * Number($("speed").value)), performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
  }
}

function pause() {
  playing = null;
  $("play").textContent = "▶";
  $("play").ariaLabel = "Play";
}

const toggle = () => (playing ? pause() : play());

function step(distance) {
  pause();
  return show((wanted + distance + frameCount()) % frameCount());
}

function onKey(event) {
  const target = event.target;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const takesKeys = target.matches("input:not(#time), select, textarea, .wide");
  const actions = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-wanted), End: () => step(frameCount() - 1 - wanted) };
  if (event.key === " " && !takesKeys && !target.matches("button, summary")) actions[" "] = toggle;
  if ($("vote").open && !$("ballot").hidden) [..."123"].forEach((key, i) => (actions[key] = () => $("ballot").querySelectorAll("button")[i].click()));
  if (takesKeys || !actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

// ---------------------------------------------------------------- clips by prompt and seed

const nameOf = (group) => group.prompt + (group.seed === null ? "" : ` (seed ${group.seed})`);

/** Return views of clips in canvases; clips of one file share its frames. */
function viewsOf(clips, canvases) {
  const sources = new Map();
  return clips.map((clip, i) => {
    const file = clip.files[0];
    if (!sources.has(file)) sources.set(file, new Source(clip));
    return new View(canvases[i], clip, sources.get(file));
  });
}

function closeSources(closed) {
  new Set(closed.map((view) => view.source)).forEach((source) => source.close());
}

/** Return the article of a group, whose clips are loaded while it is near the screen. */
function articleOf(group) {
  const canvases = [];
  const playable = [];
  const figures = group.clips.map((clip) => {
    const caption = element("figcaption", { textContent: clip.label }, element("small", { textContent: clip.caption }));
    if (clip.kind === "animation") {
      return element("figure", {}, element("img", { src: clip.files[0], alt: clip.label, loading: "lazy" }), caption);
    }
    const [, , width, height] = clip.box ?? [0, 0, 256, 256];
    const canvas = element("canvas", { width, height });
    canvas.addEventListener("fault", (event) => {
      caption.querySelector(".fault")?.remove();
      if (event.detail) caption.append(element("small", { className: "fault", textContent: event.detail }));
    });
    canvases.push(canvas);
    playable.push(clip);
    const button = element("button", { type: "button", ariaLabel: `Enlarge ${clip.label}`, onclick: () => openStage(group, clip) }, canvas);
    return element("figure", {}, button, caption);
  });
  const seed = element("p", { className: "seed", textContent: group.seed === null ? "" : `seed ${group.seed}` });
  const article = element("article", {}, element("h3", { textContent: group.prompt }), seed, element("div", { className: "clips" }, ...figures));
  let open = null;
  article.setVisible = (isVisible) => {
    if (isVisible === Boolean(open)) return;
    if (isVisible) {
      open = viewsOf(playable, canvases);
      open.forEach((view) => nearViews.add(view));
    } else {
      open.forEach((view) => nearViews.delete(view));
      closeSources(open);
      open = null;
    }
    showAnew();
  };
  return article;
}

const nearScreen = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.target.setVisible(entry.isIntersecting)),
  { rootMargin: "300px" },
);

function showGroups(data) {
  let page = 0;
  let matching = data.groups;

  function fill() {
    for (const article of $("groups").children) {
      nearScreen.unobserve(article);
      article.setVisible(false);
    }
    const pages = Math.max(1, Math.ceil(matching.length / GROUPS_A_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const articles = matching.slice(page * GROUPS_A_PAGE, (page + 1) * GROUPS_A_PAGE).map(articleOf);
    $("groups").replaceChildren(...articles);
    articles.forEach((article) => nearScreen.observe(article));
    $("pager").hidden = pages === 1;
    $("where").textContent = `page ${page + 1} of ${pages}`;
    $("previous").disabled = page === 0;
    $("next").disabled = page === pages - 1;
  }

  function turn(distance) {
    page += distance;
    fill();
    $("clips").scrollIntoView();
  }

  $("previous").onclick = () => turn(-1);
  $("next").onclick = () => turn(1);
  $("find").oninput = () => {
    const words = $("find").value.toLowerCase().split(/\s+/);
    matching = data.groups.filter((group) => words.every((word) => nameOf(group).toLowerCase().includes(word)));
    page = 0;
    fill();
  };
  fill();
}

// ---------------------------------------------------------------- dialogs

/** Open a dialog over the page, with the bar in it; `closed` is called when it is closed in any way. */
function openDialog(dialog, closed) {
  dialog.querySelector(".bar-here").append($("bar"));
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.onclose = () => {
    $("bar-place").append($("bar"));
    dialogViews = null;
    closed();
    showAnew();
  };
  dialogViews = [];
  dialog.showModal();
  $("play").focus();
}

const playableOf = (group) => group.clips.filter((clip) => clip.kind !== "animation");
const optionsOf = (labels) => labels.map((label, i) => element("option", { value: i, textContent: label }));

function openStage(group, clip) {
  const clips = playableOf(group);
  const all = viewsOf(clips, clips.map(() => null));
  const labels = clips.map((other) => other.label);
  $("stage-prompt").textContent = nameOf(group);
  $("stage-a").replaceChildren(...optionsOf(labels));
  $("stage-b").replaceChildren(...optionsOf(labels));
  const a = clips.indexOf(clip);
  $("stage-a").value = a;
  $("stage-b").value = a === clips.length - 1 ? 0 : clips.length - 1;

  function arrange() {
    const mode = document.querySelector("input[name=mode]:checked").value;
    const [first, second] = [Number($("stage-a").value), Number($("stage-b").value)];
    dialogViews = [new View($("canvas-a"), clips[first], all[first].source)];
    if (mode !== "alone") dialogViews.push(new View($("canvas-b"), clips[second], all[second].source));
    $("canvas-b").hidden = $("b-label").hidden = mode === "alone";
    $("canvas-b").style.mixBlendMode = mode === "difference" ? "difference" : "normal";
    $("canvas-b").style.clipPath = mode === "wipe" ? `inset(0 0 0 ${$("wipe").value}%)` : "none";
    $("stage-picture").style.filter = mode === "difference" ? `brightness(${$("gain").value})` : "none";
    $("edge").hidden = $("wipe-label").hidden = mode !== "wipe";
    $("edge").style.left = `${$("wipe").value}%`;
    $("gain-label").hidden = mode !== "difference";
    $("gain-number").textContent = $("gain").value;
    const words = (k) => [labels[k], clips[k].caption].filter(Boolean).join(", ");
    const captions = { alone: words(first), wipe: `left ${words(first)}; right ${words(second)}`, difference: `what differs between ${words(first)} and ${words(second)}, times ${$("gain").value}` };
    $("stage-caption").textContent = captions[mode];
    showAnew().then(() => {
      const { width, height } = $("canvas-a");
      $("stage-picture").style.maxWidth = `calc(60vh * ${width} / ${height})`;
    });
  }

  function drag(event) {
    if ($("wipe-label").hidden || !event.buttons) return;
    const { left, width } = $("stage-picture").getBoundingClientRect();
    $("wipe").value = Math.round((100 * (event.clientX - left)) / width);
    arrange();
  }

  $("stage-picture").onpointerdown = $("stage-picture").onpointermove = drag;
  for (const id of ["stage-a", "stage-b", "wipe", "gain"]) $(id).oninput = arrange;
  document.querySelectorAll("input[name=mode]").forEach((radio) => (radio.onchange = arrange));
  openDialog($("stage"), () => closeSources(all));
  arrange();
}

// ---------------------------------------------------------------- the vote

let votes = [];
let unsaved = false;

function shuffled(items) {
  const order = [...items];
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function tallyOf(cast) {
  const tally = {};
  for (const vote of cast) {
    for (const label of [vote.left, vote.right]) tally[label] ??= 0;
    const better = vote.better ?? "no difference";
    tally[better] = (tally[better] ?? 0) + 1;
  }
  return tally;
}

/** Return the pairs of clips of a group that are voted on; of a label that is null any other clip, and each comes up. */
function ballotsOf(group, [a, b]) {
  const labels = [...new Set(group.clips.map((clip) => clip.label))];
  if (a !== null && b !== null) return a !== b && labels.includes(a) && labels.includes(b) ? [{ group, pair: [a, b] }] : [];
  const fixed = a ?? b;
  if (fixed !== null) return labels.includes(fixed) ? labels.filter((label) => label !== fixed).map((label) => ({ group, pair: [fixed, label] })) : [];
  const order = shuffled(labels);
  return order.length < 2 ? [] : order.slice(1).map((label, i) => ({ group, pair: [order[i], label] }));
}

function openVote(data) {
  const playable = data.groups.map((group) => ({ ...group, clips: playableOf(group) }));
  const labels = [...new Set(playable.flatMap((group) => group.clips.map((clip) => clip.label)))];
  let compared = [];
  for (const id of ["vote-a", "vote-b"]) $(id).replaceChildren(...optionsOf(labels.length > 2 ? [...labels, "any"] : labels));
  $("vote-a").value = Math.max(labels.length - 2, 0);
  $("vote-b").value = labels.length - 1;
  $("vote-setup").hidden = false;
  $("ballot").hidden = true;
  $("vote-result").textContent = "";

  function start() {
    const wantedPair = ["vote-a", "vote-b"].map((id) => labels[$(id).value] ?? null); // "any" is none of them
    const clipOf = (group, label) => group.clips.find((clip) => clip.label === label);
    const ballots = shuffled(playable.flatMap((group) => ballotsOf(group, wantedPair)));
    const first = votes.length;
    let number = -1;
    if (!ballots.length) {
      $("vote-result").textContent = "No prompt and seed has a clip of both.";
      return;
    }

    function next() {
      closeSources(compared);
      compared = dialogViews = [];
      number += 1;
      if (number === ballots.length) {
        $("ballot").hidden = true;
        $("vote-setup").hidden = false;
        const tally = tallyOf(votes.slice(first));
        $("vote-result").textContent = `Better: ${Object.entries(tally).map(([label, count]) => `${label} ${count}`).join(", ")}.`;
        return;
      }
      const { group, pair } = ballots[number];
      const [left, right] = shuffled(pair);
      $("vote-prompt").textContent = group.prompt;
      $("vote-count").textContent = `${number + 1} of ${ballots.length}`;
      compared = dialogViews = viewsOf([clipOf(group, left), clipOf(group, right)], [$("vote-left"), $("vote-right")]);
      showAnew();
      for (const button of $("ballot").querySelectorAll("button")) {
        button.onclick = () => {
          votes.push({ prompt: group.prompt, seed: group.seed, left, right, better: { left, right }[button.value] ?? null });
          unsaved = true;
          $("vote-save").disabled = false;
          next();
        };
      }
    }

    $("vote-setup").hidden = true;
    $("ballot").hidden = false;
    $("vote-result").textContent = "";
    next();
  }

  $("vote-start").onclick = start;
  $("vote-save").onclick = () => {
    const saved = { page: data.title, date: new Date().toISOString(), votes, better: tallyOf(votes) };
    const address = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 2)], { type: "application/json" }));
    element("a", { href: address, download: "votes.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    unsaved = false;
  };
  openDialog($("vote"), () => closeSources(compared));
}

// ---------------------------------------------------------------- the start

if ($("data")) {
  const data = JSON.parse($("data").textContent);
  $("play").onclick = toggle;
  $("time").oninput = () => { pause(); show(Number($("time").value)); };
  $("vote-open").onclick = () => openVote(data);
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
  barAt(0);
  showGroups(data);
}
