// A photograph -> POST /v1/encode -> POST /v1/decode -> both pictures side by side, and what it cost.

const $ = (id) => document.getElementById(id);
const STRIP = 256; // rows compared at a time: a canvas of a whole photograph is more than phones allow

let file = null;
let running = new AbortController();
let urls = [];

async function listModels() {
  const { models } = await (await ask("/v1/models")).json();
  for (const model of models) {
    const quality = model.quality ? `, quality ${model.quality}` : "";
    const option = new Option(`${model.name} (λ = ${model.lambda}${quality})`, model.name, model.default, model.default);
    $("model").add(option);
  }
}

async function ask(path, options = {}) {
  const key = $("key").value.trim();
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401 || response.status === 403) $("locked").hidden = false;
  const problem = await response.json().catch(() => ({ title: response.statusText, detail: "" }));
  throw new Error(`${problem.title}: ${problem.detail}`);
}

async function compress() {
  if (!file) return;
  running.abort();
  const { signal } = (running = new AbortController());
  urls.forEach(URL.revokeObjectURL);
  urls = [];
  $("error").hidden = $("result").hidden = true;
  $("chosen").textContent = `${file.name}, ${bytes(file.size)}`;
  try {
    if (!$("model").options.length) await listModels(); // the server was away when the page was opened
    say("Encoding…");
    const start = performance.now();
    const encoded = await ask(`/v1/encode?model=${encodeURIComponent($("model").value)}`, {
      method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal,
    });
    const bitstream = await encoded.blob();
    const middle = performance.now();
    say("Decoding…");
    const decoded = await ask("/v1/decode", {
      method: "POST", body: bitstream, headers: { "Content-Type": bitstream.type, Accept: "image/png" }, signal,
    });
    const image = await decoded.blob();
    const end = performance.now();
    await show(bitstream, image, Number(encoded.headers.get("TCM-Bits-Per-Pixel")), signal);
    if (signal.aborted) return;
    $("time").textContent = `${seconds(middle - start)}, ${seconds(end - middle)}`;
    say("");
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

async function show(bitstream, image, bitsPerPixel, signal) {
  $("before").src = url(file);
  $("after").src = url(image);
  $("before-size").textContent = bytes(file.size);
  $("after-size").textContent = `from ${bytes(bitstream.size)}`;
  $("bpp").textContent = bitsPerPixel.toFixed(3);
  $("ratio").textContent = `${((100 * bitstream.size) / file.size).toFixed(1)} %`;
  $("download").href = url(bitstream);
  $("download").download = `${file.name.replace(/\.[^.]*$/, "") || "image"}.tcm`;
  $("psnr").textContent = "…";
  $("result").hidden = false;
  const after = await createImageBitmap(image);
  const before = await createImageBitmap(file).catch(() => null); // a format that this browser does not show
  if (signal.aborted) return; // another photograph was chosen meanwhile
  $("pixels").textContent = `${after.width} × ${after.height}`;
  $("psnr").textContent = before ? decibels(before, after) : "unknown: this browser cannot show the original";
}

function decibels(before, after) {
  if (before.width !== after.width || before.height !== after.height) return "unknown: sizes differ";
  let squares = 0;
  for (let top = 0; top < after.height; top += STRIP) {
    const rows = Math.min(STRIP, after.height - top);
    const a = pixels(before, top, rows);
    const b = pixels(after, top, rows);
    for (let i = 0; i < a.length; i += 4) {
      for (let c = 0; c < 3; c++) squares += (a[i + c] - b[i + c]) ** 2;
    }
  }
  const mse = squares / (3 * after.width * after.height);
  return mse ? `${(10 * Math.log10(255 ** 2 / mse)).toFixed(2)} dB` : "lossless";
}

function pixels(bitmap, top, rows) {
  const canvas = new OffscreenCanvas(bitmap.width, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, -top);
  return context.getImageData(0, 0, bitmap.width, rows).data;
}

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
  compress();
}

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", (event) => {
  choose(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
$("model").addEventListener("change", compress);
for (const name of ["dragenter", "dragover"]) {
  $("drop").addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
}
$("drop").addEventListener("drop", (event) => { event.preventDefault(); choose(event.dataTransfer.files); });

async function start() {
  $("error").hidden = true;
  try {
    if (!$("model").options.length) await listModels();
    await compress();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

$("key").addEventListener("change", start);
start();
