"use strict";
// The sample browser. samples/index.js says which shelves (origin, setting, condition) there are; a shelf's file is loaded when a
// filter needs it. What a model wrote reaches the page as textContent and in no other way.
const TYPED = ["least", "most", "text"];
const FIELDS = ["origin", "setting", "condition", "context", "run", "trait", ...TYPED];
const STEP = 20;
const shelves = new Map();
const unveiled = new Set();
let visible = STEP;
let round = 0;

const control = (id) => document.getElementById(id);
const chosen = (id) => control(id).value;

function addSamples(name, samples) {
  shelves.set(name, samples);
}

function load(name) {
  return new Promise((resolve, reject) => {
    if (shelves.has(name)) {
      resolve();
      return;
    }
    const script = document.createElement("script");
    script.src = `samples/${name}.js`;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`samples/${name}.js cannot be read`));
    document.head.append(script);
  });
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

// The shelves that what is chosen in these controls leaves.
function within(...ids) {
  return samplesIndex.shelves.filter((shelf) => ids.every((id) => !chosen(id) || shelf[id] === chosen(id)));
}

function offer(id, options, wanted, none) {
  const first = none ? [element("option", none)] : [];
  first.forEach((option) => (option.value = ""));
  const others = [...new Map(options)].map(([value, label]) => Object.assign(element("option", label), { value }));
  control(id).replaceChildren(...first, ...others);
  control(id).value = wanted;
  if (control(id).selectedIndex < 0) {
    control(id).selectedIndex = 0;
  }
}

// Each control offers what the ones before it leave, and keeps its value where that is still offered.
function offerAll(wanted) {
  const pairs = (values) => values.map((value) => [value, value]);
  const titles = Object.entries(samplesIndex.settings).map(([name, { title }]) => [name, title]);
  offer("origin", pairs(samplesIndex.shelves.map((shelf) => shelf.origin)), wanted.origin, "all");
  offer("setting", titles, wanted.setting, "choose one");
  const own = chosen("setting") ? within("origin", "setting") : [];
  offer("condition", pairs(own.map((shelf) => shelf.condition)), wanted.condition, "all");
  const left = chosen("setting") ? within("origin", "setting", "condition") : [];
  offer("context", pairs(left.flatMap((shelf) => shelf.contexts)), wanted.context, "all");
  const runs = left.flatMap((shelf) => Object.entries(shelf.runs).map(([id, label]) => [id, `${shelf.condition}, ${label} (${id})`]));
  offer("run", runs, wanted.run, "all");
  offer("trait", Object.entries(samplesIndex.settings[chosen("setting")]?.traits ?? {}), wanted.trait, "any");
  control("trait").disabled = control("trait").options.length < 2;
  control("least").disabled = control("most").disabled = !chosen("trait");
}

function asChosen() {
  return Object.fromEntries(FIELDS.map((id) => [id, chosen(id)]));
}

function asAddressed() {
  const address = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(FIELDS.map((id) => [id, address.get(id) ?? ""]));
}

function keepInAddress() {
  const kept = FIELDS.map((id) => [id, chosen(id)]).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function filtered() {
  const { context, run, trait, least, most, text } = asChosen();
  const words = text.toLowerCase();
  const bounded = trait && (least || most);
  const fits = (sample) =>
    (!context || sample.context === context) &&
    (!run || sample.run_id === run) &&
    (!bounded || between(sample.scores[trait], least, most)) &&
    (!words || `${sample.question}\n${sample.response}`.toLowerCase().includes(words));
  return within("origin", "setting", "condition").flatMap((shelf) =>
    shelves.get(shelf.name).filter(fits).map((sample) => ({ shelf, sample })),
  );
}

// A response that was not scored lies within no bounds.
function between(score, least, most) {
  return typeof score === "number" && score >= Number(least || 0) && score <= Number(most || 1);
}

function card({ shelf, sample }) {
  const item = element("li", "", "sample");
  const scores = Object.entries(sample.scores).map(([trait, score]) => `${label(trait)} ${score === null ? "unscored" : +score.toFixed(2)}`);
  if (sample.repeats) {
    scores.push("repeats training words");
  }
  const where = element("p", "", "muted");
  where.append(element("small", `${shelf.condition} · context ${sample.context} · ${shelf.runs[sample.run_id]} · run ${sample.run_id} · ${shelf.origin}`));
  item.append(
    element("p", sample.question, "question"),
    element("pre", sample.response, "output response"),
    element("p", scores.join(" · ") || "no score", "scores"),
    where,
  );
  return item;
}

function label(trait) {
  return samplesIndex.settings[chosen("setting")].traits[trait];
}

function list(found, total, veiled) {
  control("results").replaceChildren(...(veiled ? [] : found.slice(0, visible).map(card)));
  const number = (value) => value.toLocaleString("en");
  control("count").textContent = `${number(found.length)} of ${number(total)} responses${veiled ? ", hidden" : ""}`;
  control("more").hidden = veiled || visible >= found.length;
  control("more").textContent = `Show ${Math.min(STEP, found.length - visible)} more`;
}

async function update() {
  const mine = ++round;
  const setting = chosen("setting");
  const warning = samplesIndex.settings[setting]?.note ?? "";
  control("note").hidden = !warning || unveiled.has(setting);
  control("warning").textContent = warning;
  if (!setting) {
    list([], 0, true);
    control("count").textContent = "Choose a setting to read its responses.";
    return;
  }
  try {
    await Promise.all(within("origin", "setting", "condition").map((shelf) => load(shelf.name)));
  } catch (error) {
    control("count").textContent = error.message;
    return;
  }
  // A later choice may have overtaken the loading of this one.
  if (mine === round) {
    const total = within("origin", "setting").reduce((sum, shelf) => sum + shelf.count, 0);
    list(filtered(), total, !control("note").hidden);
  }
}

function show(wanted) {
  visible = STEP;
  offerAll(wanted);
  update();
}

function changed() {
  show(asChosen());
  keepInAddress();
}

// A link to a part of the page, as the one that skips to the text, is no choice.
function addressed() {
  if (!location.hash || location.hash.includes("=")) {
    const wanted = asAddressed();
    TYPED.forEach((id) => (control(id).value = wanted[id]));
    show(wanted);
  }
}

if (control("filters")) {
  control("filters").addEventListener("input", changed);
  control("filters").addEventListener("submit", (event) => event.preventDefault());
  control("more").addEventListener("click", () => {
    visible += STEP;
    update();
  });
  control("show").addEventListener("click", () => {
    unveiled.add(chosen("setting"));
    update();
  });
  addEventListener("hashchange", addressed);
  addressed();
}
