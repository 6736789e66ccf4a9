"use strict";

// From the files a visitor chooses to the report. All text from outside goes in as text, never as
// markup.

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
let run = null; // what is under way: {request, url, stopped, timer}
let answer = null; // {url, result, report}

// --- talking to the server

class Problem extends Error {
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

async function ask(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { ...options, headers: authorization() });
  } catch {
    throw new Problem(0, "The server does not answer.");
  }
  if (response.ok) return response;
  throw new Problem(
    response.status,
    sentence(await response.text()),
    Number(response.headers.get("Retry-After"))
  );
}

function sentence(body) {
  try {
    return JSON.parse(body).error;
  } catch {
    return "The server's answer cannot be understood.";
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
          new Problem(
            request.status,
            sentence(request.responseText),
            Number(request.getResponseHeader("Retry-After"))
          )
        );
      }
    };
    request.onerror = () => reject(new Problem(0, "The connection broke while the files were sent."));
    request.onabort = () => reject(new Problem(-1, ""));
    request.send(form);
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// --- what is seen

function show(id) {
  for (const section of document.querySelectorAll("#app > section")) {
    section.hidden = section.id !== id;
  }
  window.scrollTo(0, 0);
  const title = document.querySelector(`#${id} h1[tabindex]`);
  if (title) title.focus();
}

function say(text) {
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
  let wrong = "";
  if (files.length > limits.files) {
    wrong = `That is more than ${limits.files} files; choose one series of one person.`;
  } else if (bytes > limits.bytes) {
    wrong = `That is more than ${size(limits.bytes)}; choose one series of one person.`;
  }
  at("chosen-wrong").textContent = wrong;
  at("start").disabled = wrong !== "";
  at("chosen").hidden = files.length === 0;
  if (files.length) {
    say(`${count} chosen. ${wrong}`);
    at("chosen").scrollIntoView({ block: "nearest" });
    if (!wrong) at("start").focus({ preventScroll: true });
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

function stage(name, detail = "") {
  const place = STAGES.indexOf(name);
  for (const item of at("stages").children) {
    const own = STAGES.indexOf(item.dataset.stage);
    item.className = own < place ? "past" : own === place ? "now" : "";
    if (own === place) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    item.dataset.text = item.dataset.text || item.textContent;
    item.textContent = own === place && detail ? `${item.dataset.text}: ${detail}` : item.dataset.text;
    if (own === place) say(item.textContent);
  }
  at("sent").hidden = name !== "sending";
}

function tell(problem) {
  if (problem.status === 401) {
    askForToken("That token is not the right one.");
    return;
  }
  let title = "That did not work";
  let hint = "";
  let text = problem.message;
  if (problem.status === 422) {
    title = "Invalid input";
    text = text.replace(/^invalid input: /, "");
    text = `This cannot be read as a chest CT: ${text}`;
    hint =
      "Give axial slices of one person's chest: a DICOM series, PNG or JPEG slices in the lung window, or a volume.";
  } else if (problem.status === 429) {
    title = "The server is busy";
  } else if (problem.status === 0) {
    title = "The server cannot be reached";
    hint = "It may have been stopped, or the connection is broken.";
  }
  at("problem-title").textContent = title;
  at("problem-text").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  at("problem-hint").textContent = hint;
  at("again").hidden = problem.status === 422 || problem.status === 413;
  show("problem");
  say(`${title}. ${text}`);
  if (problem.status === 429) countDown(problem.retryAfter || 5);
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
    at("problem-hint").textContent = `The files are sent again in ${left} s.`;
    setTimeout(tick, 250);
  };
  tick();
}

function askForToken(wrong = "") {
  sessionStorage.removeItem(TOKEN_KEY);
  at("login-error").textContent = wrong;
  show("login");
  at("token").value = "";
  at("token").focus();
}

// --- one person

async function start() {
  const own = { stopped: false, url: null, request: null };
  run = own;
  show("work");
  at("sent").value = 0;
  stage("sending");
  try {
    const busy = await (await ask("/api/status")).json();
    if (busy.present >= busy.places) {
      throw new Problem(429, "The server is busy with other persons.", 5);
    }
    own.url = await send(chosen, (share) => {
      at("sent").value = share;
      stage("sending", `${Math.round(100 * share)}%`);
    });
    const status = await follow(own);
    if (own.stopped) return;
    await showAnswer(own.url, status);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (!own.stopped) tell(problem);
  }
}

async function follow(own) {
  const statusOf = { refused: 422, failed: 500, timed_out: 504 };
  while (!own.stopped) {
    const status = await (await ask(own.url)).json();
    if (status.state === "done") return status;
    if (status.error) throw new Problem(statusOf[status.state], status.error);
    let detail = "";
    if (status.state === "waiting" && status.before > 0) {
      detail = status.before === 1 ? "one person before you" : `${status.before} persons before you`;
    }
    stage(status.state, detail);
    await pause(POLL_MS);
  }
  return null;
}

async function showAnswer(url, status) {
  const result = await (await ask(status.result)).json();
  answer = { url, status };
  const { label, probabilities, n_slices: n } = result.person;
  const { rule, positive, threshold } = result.decision ?? {};
  at("answer-title").textContent = `${label}: ${probabilities[label].toFixed(2)}`;
  at("answer-text").textContent =
    `The label and its probability, from ${n} slice${n === 1 ? "" : "s"}. ` +
    (rule === "threshold"
      ? `It is ${positive} from a probability of ${threshold} on.`
      : "It is the most probable label.");
  at("report").src = status.view;
  at("alone").href = status.view;
  show("answer");
  say(`The report is there: ${at("answer-title").textContent}`);
}

async function stop() {
  if (!run) return;
  run.stopped = true;
  if (run.request) run.request.abort();
  const url = run.url;
  reset();
  if (url) await ask(url, { method: "DELETE" }).catch(() => {});
}

async function save(url, name) {
  try {
    const blob = await (await ask(url)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (problem) {
    tell(problem);
  }
}

// --- what is dropped or chosen

async function dropped(transfer) {
  // The entries must be asked for at once: they are gone after the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  const plain = [...transfer.files].map((file) => ({ file, name: file.name }));
  if (!entries.some((entry) => entry && entry.isDirectory)) return plain;
  const found = [];
  for (const entry of entries) {
    if (entry) await walk(entry, "", found);
  }
  return found;
}

async function walk(entry, above, found) {
  // More than is allowed need not be counted to the end.
  if (found.length > limits.files) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, name: above + entry.name });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A browser gives a hundred at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some) await walk(one, `${above}${entry.name}/`, found);
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
  // Beside the zone, too: the browser would leave the page and open the file.
  event.preventDefault();
  zone.classList.remove("over");
  if (at("choose").hidden) return;
  try {
    choose(await dropped(event.dataTransfer));
  } catch {
    choose([]);
    tell(new Problem(-1, "The folder cannot be read."));
  }
});

at("start").addEventListener("click", start);
at("again").addEventListener("click", () => (chosen.length ? start() : reset()));
at("stop").addEventListener("click", stop);
for (const id of ["clear", "others", "next"]) at(id).addEventListener("click", reset);
at("save-report").addEventListener("click", () => save(answer.status.report, "report.html"));
at("save-result").addEventListener("click", () => save(answer.status.result, "result.json"));
at("forget").addEventListener("click", async () => {
  await ask(answer.url, { method: "DELETE" }).catch(() => {});
  reset();
  say("The answer is forgotten.");
});
at("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, at("token").value.trim());
  enter("That token is not the right one.");
});

async function enter(wrong = "") {
  try {
    await ask("/api/status");
    at("app").hidden = false;
    show("choose");
  } catch (problem) {
    at("app").hidden = false;
    if (problem.status === 401) askForToken(wrong);
    else tell(problem);
  }
}

enter();
