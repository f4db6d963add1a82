// The new-job form. A field left empty is left out of the job; what is right and what is not, the service alone
// decides: the job goes to POST /jobs:validate while one types, and the answer is shown at the fields.
import { toYaml } from "./yaml.js";
import { attachUploads } from "./upload.js";

const VALIDATE_AFTER_MS = 250;
const RETRY_AFTER_MS = 3000;
const { request } = window.dashboard;

const form = document.getElementById("new-job");
const inputs = [...form.querySelectorAll("[data-kind]")];
const byPath = new Map(inputs.map((input) => [input.name, input]));
const submit = document.getElementById("submit");
const state = document.getElementById("form-state");
const touched = new Set(inputs.filter((input) => input.value));
let showsAll = false; // after an attempt to submit, also what was never touched is complained of
let resolved = null;
let key = null; // one Idempotency-Key for each job that is tried to be submitted

// --- From the form to a job -------------------------------------------------------------------------------------

const goal = () => form.elements.goal.value;

function method() {
  const chosen = byPath.get("synthesis.method").value;
  if (chosen) return chosen;
  return presetSettings().method ?? "fast-meta";
}

// The service knows what suits the teacher's architecture, such as another preset for a vision transformer.
const defaultPreset = () => lookUp(resolved, "synthesis.preset") ?? form.dataset.defaultPreset;

function presetSettings() {
  const select = byPath.get("synthesis.preset");
  const name = select.value || (byPath.get("synthesis.method").value ? "" : defaultPreset());
  const option = [...select.options].find((each) => each.value === name && name);
  return option ? JSON.parse(option.dataset.settings) : {};
}

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const asNumber = (text) => (NUMBER.test(text) ? Number(text) : text);

function valueOf(input) {
  const text = input.value.trim();
  if (text === "") return undefined;
  if ("nullable" in input.dataset && text.toLowerCase() === "none") return null;
  switch (input.dataset.kind) {
    case "integer":
    case "number":
      return asNumber(text);
    case "boolean":
      return text === "true";
    case "numbers":
      return text.split(",").map((part) => asNumber(part.trim()));
    case "object":
      try {
        return JSON.parse(text);
      } catch {
        return text; // the service says that this is no object
      }
    default:
      return text;
  }
}

function put(job, path, value) {
  const parts = path.split(".");
  const last = parts.pop();
  let part = job;
  for (const name of parts) part = part[name] ??= {};
  part[last] = value;
}

function currentJob() {
  const job = {};
  for (const input of inputs) {
    const value = input.disabled ? undefined : valueOf(input);
    if (value !== undefined) put(job, input.name, value);
  }
  // Empty parts too, so that what is missing is asked for by the name of the field, and not of the part.
  for (const part of ["teacher", "student"]) {
    if (!byPath.get(`${part}.arch`).disabled) job[part] ??= {};
  }
  if (job.evaluation && !job.evaluation.shards) delete job.evaluation;
  if (goal() === "dataset") job.distillation = null;
  return job;
}

// --- What shows -------------------------------------------------------------------------------------------------

function applies(element) {
  const { goals, methods } = element.dataset;
  return (!goals || goals.split(" ").includes(goal())) && (!methods || methods.split(" ").includes(method()));
}

function showApplicable() {
  for (const element of form.querySelectorAll("[data-goals], [data-methods]")) element.hidden = !applies(element);
  for (const input of inputs) input.disabled = input.closest("[hidden]:not(.field-error)") !== null;
}

const words = (value) => {
  if (value === true) return "on";
  if (value === false) return "off";
  if (value === null) return "none";
  return Array.isArray(value) ? value.join(", ") : String(value);
};

const lookUp = (object, path) => path.split(".").reduce((part, name) => part?.[name], object);

// What counts where nothing is written: as the service resolved it, else from the preset and the method.
function defaultOf(input) {
  const settled = lookUp(resolved, input.name);
  if (settled !== undefined && settled !== null && typeof settled !== "object") return words(settled);
  const [, inSynthesis] = input.name.match(/^synthesis\.(.+)/) ?? [];
  const fromPreset = inSynthesis && lookUp(presetSettings(), inSynthesis);
  if (fromPreset !== undefined && typeof fromPreset !== "object") return words(fromPreset);
  const defaults = JSON.parse(input.dataset.defaults);
  const text = defaults[method()] ?? defaults[""] ?? "";
  return { true: "on", false: "off" }[text] ?? text;
}

function showDefaults() {
  for (const input of inputs) {
    if (input.disabled || input.value) continue;
    let text = defaultOf(input);
    if (input.name === "synthesis.preset") text = byPath.get("synthesis.method").value ? "none" : defaultPreset();
    if (input.name === "synthesis.method") text = method();
    if (input.tagName === "SELECT") input.options[0].textContent = text ? `Default (${text})` : "Default";
    else input.placeholder = text;
  }
}

function showState(text, kind = "") {
  if (state.textContent !== text) state.textContent = text;
  state.dataset.kind = kind;
}

function showSetCounts() {
  for (const details of form.querySelectorAll(".advanced")) {
    const set = [...details.querySelectorAll("[data-kind]")].filter((input) => !input.disabled && input.value).length;
    details.querySelector("[data-set-count]").textContent = set ? `${set} set` : "";
  }
}

const count = new Intl.NumberFormat("en");
function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  for (; value >= 999.5 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function showEstimate(estimate) {
  const { images, rounds, inversion_steps, shards, kd_steps, kd_images, pool_bytes, workers } = estimate ?? {};
  const rows = [
    ["Images", images && `${count.format(images)} in ${count.format(rounds)} batches`],
    ["Inversion", inversion_steps && `${count.format(inversion_steps)} steps`],
    ["Dataset", estimate?.bytes && `${bytes(estimate.bytes)} in ${count.format(shards)} ${shards === 1 ? "shard" : "shards"}`],
    ["Training", kd_steps && `${count.format(kd_steps)} steps, ${count.format(kd_images)} images seen`],
    ["Memory", pool_bytes && `${bytes(pool_bytes)} for the distiller's images`],
    ["Workers", workers > 1 && `up to ${count.format(workers)} for synthesis`],
  ].filter(([name, text]) => text || (!estimate && ["Images", "Dataset", "Training"].includes(name)));
  const list = document.getElementById("estimate");
  list.replaceChildren(
    ...rows.flatMap(([name, text]) => {
      const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      detail.textContent = text || "–";
      return [term, detail];
    }),
  );
}

// --- Errors at their fields -------------------------------------------------------------------------------------

// `teacher.input.mean.0` belongs to `teacher.input.mean`; what has no field of its own is listed below the button.
function inputFor(field) {
  for (let path = field; path; path = path.slice(0, Math.max(path.lastIndexOf("."), 0))) {
    const input = byPath.get(path);
    if (input) return input.disabled ? null : input;
  }
  return null;
}

function showErrors(errors) {
  const messages = new Map();
  const others = [];
  for (const { field, message } of errors) {
    const input = inputFor(field);
    if (!input) others.push(field ? `${field}: ${message}` : message);
    else if (!messages.has(input)) messages.set(input, message);
  }
  for (const input of inputs) {
    const isShown = messages.has(input) && (showsAll || touched.has(input));
    const error = document.getElementById(`${input.id}-error`);
    error.hidden = !isShown;
    error.textContent = isShown ? messages.get(input).replace(/^is required$/, "This field is required.") : "";
    if (isShown) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  const list = document.getElementById("form-errors");
  list.hidden = others.length === 0;
  list.replaceChildren(...others.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  if (errors.length === 0) return;
  const shown = [...messages.keys()].filter((input) => showsAll || touched.has(input)).length + others.length;
  const missing = messages.size + others.length - shown;
  if (shown > 0) showState(shown === 1 ? "One field needs attention." : `${shown} fields need attention.`, "error");
  else showState(missing === 1 ? "One more field is needed." : `${missing} more fields are needed.`);
}

function focusFirstError() {
  const first = inputs.find((input) => input.getAttribute("aria-invalid") === "true");
  if (!first) return;
  const details = first.closest("details");
  if (details) details.open = true;
  first.focus();
}

// --- Checking while one types -----------------------------------------------------------------------------------

let timer = 0;
let asked = 0;

function changed() {
  showApplicable();
  const job = currentJob();
  document.getElementById("yaml").textContent = toYaml(job);
  showDefaults();
  showSetCounts();
  clearTimeout(timer);
  // Of an empty form it is plain what is missing.
  if (touched.size > 0) timer = setTimeout(validate, VALIDATE_AFTER_MS);
}

async function validate() {
  const number = ++asked;
  const missing = missingParts();
  let errors = [];
  let answer = null;
  try {
    answer = await request("POST", "/jobs:validate", { json: currentJob() });
  } catch (error) {
    if (number !== asked) return;
    if (!error.problem || error.problem.status >= 500) {
      showState(error.message, "error");
      timer = setTimeout(validate, RETRY_AFTER_MS);
      return;
    }
    errors = error.problem.errors ?? [{ field: "", message: error.message }];
  }
  if (number !== asked) return;
  resolved = answer?.spec ?? resolved;
  if (answer) showApplicable();
  showEstimate(missing.length || errors.length ? null : answer.estimate);
  showDefaults();
  showErrors([...missing, ...errors]);
  if (missing.length + errors.length === 0) showState("Ready to start.", "ready");
}

// The one thing that cannot be left to the service: a job without shards is one that makes its own.
function missingParts() {
  const isMissing = goal() === "student" && !byPath.get("shards").value.trim();
  return isMissing ? [{ field: "shards", message: "is required" }] : [];
}

// --- Submitting -------------------------------------------------------------------------------------------------

// crypto.randomUUID() only exists over HTTPS and on localhost.
function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
}

async function start(event) {
  event.preventDefault();
  if (submit.disabled) return;
  clearTimeout(timer);
  asked += 1; // no answer to an earlier question is shown any more
  showsAll = true;
  const missing = missingParts();
  if (missing.length > 0) {
    showErrors(missing);
    focusFirstError();
    return;
  }
  const job = currentJob();
  const text = JSON.stringify(job);
  if (key?.text !== text) key = { text, value: randomKey() };
  submit.disabled = true;
  showState("Starting …");
  try {
    const { id } = await request("POST", "/jobs", { json: job, headers: { "Idempotency-Key": key.value } });
    key = null; // coming back with the browser's button and submitting again means another job
    location.assign(`/ui/jobs/${id}`);
  } catch (error) {
    submit.disabled = false;
    showState(error.message, "error");
    if (error.problem?.errors) {
      showErrors(error.problem.errors);
      focusFirstError();
    }
  }
}

form.addEventListener("input", ({ target }) => {
  if (byPath.get(target.name) === target) touched.add(target);
  changed();
});
form.addEventListener("submit", start);
// A browser fills a form again that one comes back to.
addEventListener("pageshow", () => {
  submit.disabled = false;
  for (const input of inputs) if (input.value) touched.add(input);
  changed();
});

attachUploads(form, {
  maxBytes: Number(form.dataset.maxUploadBytes),
  describeBytes: bytes,
  done(input, model) {
    input.value = model.checkpoint;
    touched.add(input);
    const part = input.name.split(".")[0];
    // What the file says of its network is filled in where nothing is written yet.
    const found = { arch: model.architectures[0], num_classes: model.num_classes, "input.channels": model.input_channels };
    for (const [name, value] of Object.entries(found)) {
      const other = byPath.get(`${part}.${name}`);
      if (other && !other.value && value !== null && value !== undefined) other.value = value;
    }
    changed();
  },
});
