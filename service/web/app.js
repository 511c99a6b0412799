// A photograph -> POST /v1/encode -> POST /v1/decode -> both pictures side by side, and what it cost.
// A .tcm file is decoded alone.

const $ = (id) => document.getElementById(id);
const ROWS = 256, COLUMNS = 4096; // compared at a time: a canvas of a whole photograph is more than browsers allow
const MAGIC = [0x89, 0x54, 0x43]; // of a .tcm file, whatever it is called
const BITSTREAM = "application/vnd.tcm";
const OF_KEYS = ["key-required", "invalid-key", "insufficient-scope"];

let file = null;
let given = false; // the file is a bitstream, and names its own model
let running = new AbortController();
let urls = [];
let listed = null; // the models, asked for once, however many wait for them

function models() {
  listed ??= listModels().catch((error) => { listed = null; throw error; });
  return listed;
}

async function listModels() {
  for (const model of JSON.parse(await (await ask("/v1/models")).text()).models) {
    const quality = model.quality ? `, quality ${model.quality}` : "";
    const option = new Option(`${model.name} (λ = ${model.lambda}${quality})`, model.name, model.default, model.default);
    $("model").add(option);
  }
}

// The body of the answer as a blob; whatever else comes of it is an error that says what to do.
async function ask(path, options = {}) {
  const key = $("key").value.trim();
  if (/[^\x21-\x7e]/.test(key)) throw new Error("The API key has characters that no key has: copy it again.");
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  let response, body;
  try {
    response = await fetch(path, { ...options, headers });
    body = await response.blob();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached, or broke off. Choose the picture again to try once more.");
  }
  if (response.ok) return body;
  const problem = await body.text().then(JSON.parse)
    .catch(() => ({ title: `The server answered ${response.status}`, detail: "try again later" }));
  if (OF_KEYS.includes(problem.code)) $("locked").hidden = false;
  throw new Error(`${problem.title}: ${problem.detail}`);
}

async function work() {
  if (!file) return;
  running.abort();
  const { signal } = (running = new AbortController());
  urls.forEach(URL.revokeObjectURL);
  urls = [];
  $("error").hidden = $("result").hidden = true;
  $("chosen").textContent = `${file.name}, ${bytes(file.size)}`;
  try {
    const start = performance.now();
    say("Reading…");
    const begin = await file.slice(0, MAGIC.length).arrayBuffer().catch(() => {
      throw new Error(`${file.name} cannot be read: it is a folder, or has changed since. Choose it again.`);
    });
    signal.throwIfAborted();
    given = /\.tcm$/i.test(file.name) || MAGIC.every((byte, i) => new Uint8Array(begin)[i] === byte);
    if (!given) say("Encoding…");
    const bitstream = given ? file : await encode(signal);
    const middle = performance.now();
    say("Decoding…");
    const image = await ask("/v1/decode", {
      method: "POST", body: bitstream, headers: { "Content-Type": BITSTREAM, Accept: "image/png" }, signal,
    });
    const end = performance.now();
    const [before, after] = await Promise.all([given ? null : bitmap(file), bitmap(image)]);
    const sides = new DataView(await image.slice(16, 24).arrayBuffer()); // in the head of a PNG
    signal.throwIfAborted(); // another was chosen meanwhile
    $("time").textContent = given ? seconds(end - start) : `${seconds(middle - start)}, ${seconds(end - middle)}`;
    show(bitstream, image, sides.getUint32(0), sides.getUint32(4));
    if (!given) $("psnr").textContent = before && after ? decibels(before, after) : "unknown: this browser cannot show it";
    say(`Done: ${$("bpp").textContent} bits per pixel${given ? "" : `, PSNR ${$("psnr").textContent}`}.`);
  } catch (error) {
    if (signal.aborted) return;
    fail(error);
  }
}

async function encode(signal) {
  await models(); // the server was away when the page was opened, or is slow
  signal.throwIfAborted();
  return ask(`/v1/encode?model=${encodeURIComponent($("model").value)}`, {
    method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal,
  });
}

function show(bitstream, image, width, height) {
  const name = file.name.replace(/\.[^.]*$/, "") || "image";
  $("original").hidden = $("psnr").parentElement.hidden = $("ratio").parentElement.hidden = given;
  if (!given) $("before").src = url(file);
  $("after").src = url(image);
  $("before-size").textContent = bytes(file.size);
  $("after-size").textContent = `from ${bytes(bitstream.size)}`;
  $("bpp").textContent = ((8 * bitstream.size) / (width * height)).toFixed(3);
  $("ratio").textContent = `${((100 * bitstream.size) / file.size).toFixed(1)} %`;
  $("pixels").textContent = `${width} × ${height}`;
  $("took").textContent = given ? "Decoded in" : "Encoded, decoded in";
  $("download").textContent = given ? "Download the picture" : "Download the bitstream";
  $("download").href = url(given ? image : bitstream);
  $("download").download = given ? `${name}.png` : `${name}.tcm`;
  $("result").hidden = false;
}

function decibels(before, after) {
  if (before.width !== after.width || before.height !== after.height) return "unknown: sizes differ";
  let squares = 0, count = 0;
  for (let top = 0; top < after.height; top += ROWS) {
    for (let left = 0; left < after.width; left += COLUMNS) {
      const a = pixels(before, left, top);
      const b = pixels(after, left, top);
      for (let i = 0; i < a.length; i += 4) {
        if (a[i + 3] < 255 || b[i + 3] < 255) continue; // what a canvas says of their colours is rounded, or nothing
        for (let c = 0; c < 3; c++) squares += (a[i + c] - b[i + c]) ** 2;
        count += 3;
      }
    }
  }
  if (!count) return "unknown: all of it is transparent";
  const mse = squares / count;
  return mse ? `${(10 * Math.log10(255 ** 2 / mse)).toFixed(2)} dB` : "lossless";
}

function pixels(bitmap, left, top) {
  const [columns, rows] = [Math.min(COLUMNS, bitmap.width - left), Math.min(ROWS, bitmap.height - top)];
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, -left, -top);
  return context.getImageData(0, 0, columns, rows).data;
}

const bitmap = (blob) => createImageBitmap(blob).catch(() => null); // a format that this browser does not show

function url(blob) {
  urls.push(URL.createObjectURL(blob));
  return urls.at(-1);
}

const say = (text) => { $("status").textContent = text; };
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
const bytes = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(2)} MB`);

function choose(files) {
  if (!files.length) return;
  file = files[0];
  work();
}

function fail(error) {
  say("");
  $("error").textContent = error.message;
  $("error").hidden = false;
}

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", (event) => {
  choose(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
$("model").addEventListener("change", () => { if (file && !given) work(); });
// the whole page takes what is dropped: a browser would leave it for a picture that falls beside the box
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(event.dataTransfer.files);
});

async function start() {
  $("error").hidden = true;
  await models().catch(fail);
  await work();
}

$("key").addEventListener("change", start);
models().catch(fail);
