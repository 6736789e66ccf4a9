"use strict";

// From the chosen files to the report. Text from outside is inserted as text, never as markup.

const POLL_MS = 400;
const SHOWN_NAMES = 6;
const TOKEN_KEY = "drenet_token";
const STAGES = ["sending", "waiting", "reading", "scoring", "drawing"];

const at = (id) => document.getElementById(id);
const limits = {
  files: Number(at("app").dataset.files),
  bytes: Number(at("app").dataset.uploadMib) * 1024 * 1024,
};

let chosen = []; // [{file, name}]
let run = null; // the current upload or job: {request, url, stopped}
let answer = null; // {url, result, report}

// --- requests

class RequestError extends Error {
  constructor(status, text, retryAfter) {
    super(text);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function authorization() {
  const token = sessionStorage.getItem(TOKEN_KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { ...options, headers: authorization() });
  } catch {
    throw new RequestError(0, "The server does not respond.");
  }
  if (response.ok) return response;
  throw new RequestError(
    response.status,
    errorSentence(await response.text()),
    Number(response.headers.get("Retry-After"))
  );
}

function errorSentence(body) {
  try {
    return JSON.parse(body).error;
  } catch {
    return "The server's answer is not valid JSON.";
  }
}

function send(files, onProgress) {
  const form = new FormData();
  for (const { file, name } of files) form.append("files", file, name);
  const request = new XMLHttpRequest();
  run.request = request;
  return new Promise((resolve, reject) => {
    request.open("POST", "/api/jobs");
    for (const [name, value] of Object.entries(authorization())) {
      request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText).url);
      else {
        reject(
          new RequestError(
            request.status,
            errorSentence(request.responseText),
            Number(request.getResponseHeader("Retry-After"))
          )
        );
      }
    };
    request.onerror = () => reject(new RequestError(0, "The connection was lost during the upload."));
    request.onabort = () => reject(new RequestError(-1, ""));
    request.send(form);
  });
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// --- display

function show(id) {
  for (const section of document.querySelectorAll("#app > section")) {
    section.hidden = section.id !== id;
  }
  window.scrollTo(0, 0);
  const title = document.querySelector(`#${id} h1[tabindex]`);
  if (title) title.focus();
}

function announce(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

function size(bytes) {
  if (bytes < 1024 * 1024) return `${Math.max(1, Math.round(bytes / 1024))} KiB`;
  return `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}

function choose(files) {
  chosen = files;
  const list = at("chosen-list");
  list.replaceChildren();
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  for (const { file, name } of files.slice(0, SHOWN_NAMES)) {
    const item = document.createElement("li");
    for (const text of [name, size(file.size)]) {
      const part = document.createElement("span");
      part.textContent = text;
      item.append(part);
    }
    list.append(item);
  }
  const count = files.length === 1 ? "1 file" : `${files.length} files`;
  at("chosen-title").textContent = `${count}, ${size(bytes)}`;
  const more = files.length - SHOWN_NAMES;
  at("chosen-more").textContent = more > 0 ? `and ${more} more` : "";
  let error = "";
  if (files.length > limits.files) {
    error = `That is more than ${limits.files} files; choose one series of one patient.`;
  } else if (bytes > limits.bytes) {
    error = `That is more than ${size(limits.bytes)}; choose one series of one patient.`;
  }
  at("chosen-wrong").textContent = error;
  at("start").disabled = error !== "";
  at("chosen").hidden = files.length === 0;
  if (files.length) {
    announce(`${count} chosen. ${error}`);
    at("chosen").scrollIntoView({ block: "nearest" });
    if (!error) at("start").focus({ preventScroll: true });
  }
}

function reset() {
  chosen = [];
  at("files").value = "";
  at("folder").value = "";
  choose([]);
  at("report").removeAttribute("src");
  show("choose");
  at("files").focus();
}

function showStage(name, detail = "") {
  const current = STAGES.indexOf(name);
  for (const item of at("stages").children) {
    const index = STAGES.indexOf(item.dataset.stage);
    item.className = index < current ? "past" : index === current ? "now" : "";
    if (index === current) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    item.dataset.text = item.dataset.text || item.textContent;
    item.textContent = index === current && detail ? `${item.dataset.text}: ${detail}` : item.dataset.text;
    if (index === current) announce(item.textContent);
  }
  at("sent").hidden = name !== "sending";
}

function showError(error) {
  if (error.status === 401) {
    askForToken("The token is not the right one.");
    return;
  }
  let title = "The request failed";
  let hint = "";
  let text = error.message;
  if (error.status === 422) {
    title = "Invalid input";
    text = text.replace(/^invalid input: /, "");
    text = `This cannot be read as a chest CT: ${text}`;
    hint =
      "Upload axial slices of one patient's chest: a DICOM series, PNG or JPEG slices in the lung window, or a volume.";
  } else if (error.status === 429) {
    title = "The server is busy";
  } else if (error.status === 0) {
    title = "The server cannot be reached";
    hint = "It may have been stopped, or the connection was lost.";
  }
  at("problem-title").textContent = title;
  at("problem-text").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  at("problem-hint").textContent = hint;
  at("again").hidden = error.status === 422 || error.status === 413;
  show("problem");
  announce(`${title}. ${text}`);
  if (error.status === 429) countDown(error.retryAfter || 5);
}

function countDown(seconds) {
  const end = Date.now() + seconds * 1000;
  const tick = () => {
    if (at("problem").hidden) return;
    const left = Math.ceil((end - Date.now()) / 1000);
    if (left <= 0) {
      start();
      return;
    }
    at("problem-hint").textContent = `The upload is repeated in ${left} s.`;
    setTimeout(tick, 250);
  };
  tick();
}

function askForToken(error = "") {
  sessionStorage.removeItem(TOKEN_KEY);
  at("login-error").textContent = error;
  show("login");
  at("token").value = "";
  at("token").focus();
}

// --- one job

async function start() {
  const job = { stopped: false, url: null, request: null };
  run = job;
  show("work");
  at("sent").value = 0;
  showStage("sending");
  try {
    const load = await (await request("/api/status")).json();
    if (load.present >= load.places) {
      throw new RequestError(429, "The server is busy with other requests.", 5);
    }
    job.url = await send(chosen, (fraction) => {
      at("sent").value = fraction;
      showStage("sending", `${Math.round(100 * fraction)}%`);
    });
    const status = await waitForEnd(job);
    if (job.stopped) return;
    await showAnswer(job.url, status);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    if (!job.stopped) showError(error);
  }
}

async function waitForEnd(job) {
  const statusOf = { refused: 422, failed: 500, timed_out: 504 };
  while (!job.stopped) {
    const status = await (await request(job.url)).json();
    if (status.state === "done") return status;
    if (status.error) throw new RequestError(statusOf[status.state], status.error);
    let detail = "";
    if (status.state === "waiting" && status.before > 0) {
      detail = status.before === 1 ? "1 job before yours" : `${status.before} jobs before yours`;
    }
    showStage(status.state, detail);
    await sleep(POLL_MS);
  }
  return null;
}

async function showAnswer(url, status) {
  const result = await (await request(status.result)).json();
  answer = { url, status };
  const { label, probabilities, n_slices: n } = result.person;
  const { rule, positive, threshold } = result.decision ?? {};
  at("answer-title").textContent = `${label}: ${probabilities[label].toFixed(2)}`;
  at("answer-text").textContent =
    `The label and its probability, from ${n} slice${n === 1 ? "" : "s"}. ` +
    (rule === "threshold"
      ? `A patient is ${positive} if its probability is at least ${threshold}.`
      : "It is the most probable label.");
  at("report").src = status.view;
  at("alone").href = status.view;
  show("answer");
  announce(`The report is ready: ${at("answer-title").textContent}`);
}

async function stop() {
  if (!run) return;
  run.stopped = true;
  if (run.request) run.request.abort();
  const url = run.url;
  reset();
  if (url) await request(url, { method: "DELETE" }).catch(() => {});
}

async function save(url, name) {
  try {
    const blob = await (await request(url)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    showError(error);
  }
}

// --- choosing files

async function droppedFiles(transfer) {
  // The entries are available during the event only.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  const plain = [...transfer.files].map((file) => ({ file, name: file.name }));
  if (!entries.some((entry) => entry && entry.isDirectory)) return plain;
  const files = [];
  for (const entry of entries) {
    if (entry) await walk(entry, "", files);
  }
  return files;
}

async function walk(entry, parent, files) {
  // Beyond the limit, no need to count on.
  if (files.length > limits.files) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    files.push({ file, name: parent + entry.name });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // Browsers return a hundred at a time.
    const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!children.length) return;
    for (const child of children) await walk(child, `${parent}${entry.name}/`, files);
  }
}

for (const id of ["files", "folder"]) {
  at(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    choose(files.map((file) => ({ file, name: file.webkitRelativePath || file.name })));
  });
}

const zone = at("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", zone.contains(event.target));
  });
}
document.addEventListener("dragleave", () => zone.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  // Everywhere, or the browser would leave the page and open the file.
  event.preventDefault();
  zone.classList.remove("over");
  if (at("choose").hidden) return;
  try {
    choose(await droppedFiles(event.dataTransfer));
  } catch {
    choose([]);
    showError(new RequestError(-1, "The folder cannot be read."));
  }
});

at("start").addEventListener("click", start);
at("again").addEventListener("click", () => (chosen.length ? start() : reset()));
at("stop").addEventListener("click", stop);
for (const id of ["clear", "others", "next"]) at(id).addEventListener("click", reset);
at("save-report").addEventListener("click", () => save(answer.status.report, "report.html"));
at("save-result").addEventListener("click", () => save(answer.status.result, "result.json"));
at("forget").addEventListener("click", async () => {
  await request(answer.url, { method: "DELETE" }).catch(() => {});
  reset();
  announce("The answer was deleted.");
});
at("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, at("token").value.trim());
  enter("The token is not the right one.");
});

async function enter(tokenError = "") {
  try {
    await request("/api/status");
    at("app").hidden = false;
    show("choose");
  } catch (error) {
    at("app").hidden = false;
    if (error.status === 401) askForToken(tokenError);
    else showError(error);
  }
}

enter();
