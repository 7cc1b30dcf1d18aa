"use strict";
// Each file is sent under one and the same name: the names of medical files often hold a patient's.
const $ = (id) => document.getElementById(id);
const items = [];          // {file, card, state: "waiting" | "done" | "failed", result, picture, labels}
const RETRIES = 20;        // of an upload that a busy server refused
let model, token = "", running = false;

if (location.hash.startsWith("#token=")) {  // a link may carry the token: what follows # is never sent
  sessionStorage.setItem("token", decodeURIComponent(location.hash.slice(7)));
  history.replaceState(null, "", location.pathname);
}
token = sessionStorage.getItem("token") || "";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers }).catch(() => { throw new Error("the server does not answer; is it running?"); });
  if (answer.ok) return answer.json();
  const error = new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
  error.status = answer.status;
  error.after = Number(answer.headers.get("Retry-After")) || 1;
  throw error;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const css = (colour) => `rgb(${colour.join(" ")})`;
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function element(tag, text, parent, className) {
  const made = parent.appendChild(document.createElement(tag));
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// --- entering -------------------------------------------------------------------------------------------------------

async function enter() {
  try {
    model = await ask("model");
  } catch (error) {
    $("door").hidden = error.status !== 401;
    $("model").textContent = error.status === 401 && !token ? "" : error.status === 401 ? "This token is not the server's." : error.message;
    return;
  }
  sessionStorage.setItem("token", token);
  $("door").hidden = true;
  $("room").hidden = false;
  $("model").textContent = `Student ${model.name}, method ${model.method}`;
  $("licence").textContent = `Licence: ${model.licence}`;
  $("limits").textContent = `· up to ${model.limits.bytes / 1e6} MB and ${model.limits.pixels / 1e6} megapixels`;
  const shown = model.classes.map((one, index) => [one.name, index, one.colour]).slice(1);
  for (const [name, value, colour] of shown.length > 1 ? [["all", "all", null], ...shown] : shown) {
    const chip = element("label", undefined, $("classes"), "chip");
    const radio = Object.assign(element("input", undefined, chip), { type: "radio", name: "class", value });
    radio.checked = $("classes").querySelectorAll("input").length === 1;
    if (colour) element("i", undefined, chip).style.background = css(colour);
    element("span", name, chip);
  }
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  enter();
});

// --- uploading ------------------------------------------------------------------------------------------------------

function add(files) {
  for (const file of files) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    const item = { file, card, state: "waiting" };
    card.querySelector("h2").textContent = file.name;
    card.querySelector(".mask").onclick = () => save(item);
    card.querySelector(".again").onclick = () => { show(item, "waiting", "waits"); run(); };
    card.querySelector(".remove").onclick = () => remove(item);
    items.push(item);
    $("results").append(card);
    show(item, "waiting", "waits");
  }
  run();
}

function remove(item) {
  items.splice(items.indexOf(item), 1);
  item.card.remove();
  summarise();
}

async function run() {  // one upload at a time: the server computes one at a time
  if (running) return;
  running = true;
  for (let item; (item = items.find((one) => one.state === "waiting")); ) {
    try {
      item.result = await upload(item);
      await prepare(item);
      show(item, "done", modalityOf(item.result));
    } catch (error) {
      show(item, "failed", error.message);
    }
  }
  running = false;
}

async function upload(item) {
  if (item.file.size > model.limits.bytes) throw new Error(`the file has ${(item.file.size / 1e6).toFixed(1)} MB; at most ${model.limits.bytes / 1e6} MB are taken`);
  const form = new FormData();
  form.append("image", item.file, "image");
  for (let tries = 0; ; tries += 1) {
    show(item, "waiting", "is being segmented…");
    try {
      return await ask("view", { method: "POST", body: form });
    } catch (error) {
      if (error.status !== 503 || tries === RETRIES || !items.includes(item)) throw error;
      show(item, "waiting", `the server is busy; next try in ${error.after} s`);
      await pause(error.after);
    }
  }
}

async function prepare(item) {
  const { image, labels } = item.result.preview;
  item.picture = await createImageBitmap(new Blob([bytesOf(image)], { type: "image/jpeg" }));
  const packed = new Blob([bytesOf(labels)]).stream().pipeThrough(new DecompressionStream("deflate"));
  item.labels = new Uint8Array(await new Response(packed).arrayBuffer());
}

// --- showing --------------------------------------------------------------------------------------------------------

function show(item, state, message = "") {
  item.state = state;
  const find = (selector) => item.card.querySelector(selector);
  item.card.className = state;
  find(".message").hidden = !message;
  find(".message").textContent = message;
  find("table").hidden = find(".mask").hidden = state !== "done";
  find(".again").hidden = state !== "failed";
  if (state === "done") {
    tabulate(item);
    layer(item);
    draw(item);
  }
  summarise();
}

function summarise() {
  const count = (state) => items.filter((item) => item.state === state).length;
  const parts = [[count("done"), "done"], [count("waiting"), "to do"], [count("failed"), "failed"]];
  $("status").textContent = parts.filter(([number]) => number).map(([number, what]) => `${number} ${what}`).join(" · ");
  $("controls").hidden = !items.length;
  $("save").disabled = !count("done");
}

function modalityOf({ modality }) {  // nothing where the student treats all modalities alike
  if (!modality) return "";
  const share = `${Math.floor(100 * modality.confidence)} %`;
  const sure = modality.decided_by === "classifier";
  return sure ? `taken for ${modality.name} (${share})` : `not sure of the modality: taken for ${modality.name} (${share})`;
}

function tabulate(item) {
  const body = item.card.querySelector("tbody");
  const square = squareMillimetres();
  body.replaceChildren();
  item.card.querySelector(".mm2").hidden = !square;
  for (const one of item.result.classes.slice(1)) {
    const row = element("tr", undefined, body);
    const name = element("td", undefined, row);
    element("i", undefined, name).style.background = css(model.classes[one.index].colour);
    name.append(one.name);
    element("td", one.pixels.toLocaleString("en"), row);
    element("td", `${(100 * one.fraction).toFixed(one.fraction && one.fraction < 0.001 ? 4 : 2)} %`, row);
    if (square) element("td", (one.pixels * square).toLocaleString("en", { maximumSignificantDigits: 4 }), row);
  }
}

function squareMillimetres() {  // of a pixel; NaN where the field says nothing usable
  const sides = $("spacing").value.trim().split(",").map((side) => (side.trim() ? Number(side) : NaN));
  const usable = sides.length < 3 && sides.every((side) => side > 0 && side < Infinity);
  $("spacing").setAttribute("aria-invalid", String(!usable && $("spacing").value.trim() !== ""));
  return usable ? sides[0] * sides.at(-1) : NaN;
}

function layer(item) {  // areas and outlines of the chosen class on canvases of their own: the slider only mixes them
  const { width, height } = item.result.preview;
  const chosen = document.querySelector("#classes input:checked").value;
  const [area, line] = [0, 1].map(() => new ImageData(width, height));
  const labels = item.labels;
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      const label = labels[at];
      if (!label || (chosen !== "all" && label !== Number(chosen))) continue;
      const edge = (x && labels[at - 1] !== label) || (x < width - 1 && labels[at + 1] !== label)
        || (y && labels[at - width] !== label) || (y < height - 1 && labels[at + width] !== label);
      (edge ? line : area).data.set([...model.classes[label].colour, 255], 4 * at);
    }
  }
  [item.area, item.line] = [area, line].map((data) => {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(data, 0, 0);
    return canvas;
  });
}

function draw(item) {
  const canvas = item.card.querySelector("canvas");
  const { width, height } = item.result.preview;
  const opacity = Number($("opacity").value) / 100;
  Object.assign(canvas, { width, height });
  canvas.classList.toggle("small", Math.max(width, height) < 400);
  canvas.setAttribute("aria-label", `${item.file.name} with its classes in colour`);
  const pen = canvas.getContext("2d");
  pen.drawImage(item.picture, 0, 0);
  pen.globalAlpha = opacity;
  pen.drawImage(item.area, 0, 0);
  pen.globalAlpha = Math.min(1, 3 * opacity);  // the outline stays clear, and leaves with the rest
  pen.drawImage(item.line, 0, 0);
}

const done = () => items.filter((item) => item.state === "done");

// --- saving ---------------------------------------------------------------------------------------------------------

function save(item) {
  const url = URL.createObjectURL(new Blob([bytesOf(item.result.mask)], { type: "image/png" }));
  const stem = item.file.name.replace(/\.[^.]*$/, "") || "image";
  Object.assign(document.createElement("a"), { href: url, download: `${stem}_mask.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

$("save").onclick = async () => {
  for (const item of done()) {
    save(item);
    await pause(0.2);  // browsers drop downloads that come at once
  }
};

// --- events ---------------------------------------------------------------------------------------------------------

$("files").onchange = (event) => { add([...event.target.files]); event.target.value = ""; };
$("clear").onclick = () => [...items].forEach(remove);
$("opacity").oninput = () => { $("percent").value = `${$("opacity").value} %`; done().forEach(draw); };
$("classes").onchange = () => done().forEach((item) => { layer(item); draw(item); });
$("spacing").oninput = () => { squareMillimetres(); done().forEach(tabulate); };
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {  // anywhere on the page: a near miss would open the file instead
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && model) add([...event.dataTransfer.files]);
  });
}
enter();
