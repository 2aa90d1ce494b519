// The page of `edgeguard serve`. It asks this server alone, keeps nothing, and writes what it got as text, never as markup.
"use strict";

const LEAST = 0.005; // smallest mass of an answer to draw
const MOST_PLACES = 200; // of a tree to draw: a page is no data format
const ROLES = { system: "system", user: "user", human: "user", prompter: "user", assistant: "assistant", ai: "assistant", agent: "assistant", bot: "assistant", gpt: "assistant", model: "assistant", tool: "tool" };
const at = (id) => document.getElementById(id);
const state = { models: [], row: null, thresholds: {}, request: null };

// ---------------------------------------------------------------- small parts

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else if (key in made && typeof value === "boolean") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const isObject = (x) => x !== null && typeof x === "object" && !Array.isArray(x);
const object = (x) => (isObject(x) ? x : {});
const inside = (x) => Math.min(1, Math.max(0, x));

function shown(p) {
  if (!isNumber(p)) return "–";
  if (p > 0 && p < 0.0005) return "<0.001";
  return p < 1 && p >= 0.9995 ? ">0.999" : p.toFixed(3);
}

function percent(p) {
  if (!isNumber(p)) return "–";
  if (p > 0 && p < 0.0001) return "<0.01 %";
  return p < 1 && p > 0.9999 ? ">99.99 %" : `${(100 * p).toFixed(2)} %`;
}

// ---------------------------------------------------------------- what was typed → a record

/** {record, says} or {problem}: what the server is asked, and what the page understood. */
function understood(kind, typed) {
  if (!typed.trim()) return { problem: "" };
  if (kind === "text") return { record: { text: typed }, says: "" };
  return /^\s*[[{]/.test(typed) ? fromJson(typed) : fromLines(typed);
}

function fromJson(typed) {
  let value;
  try {
    value = JSON.parse(typed);
  } catch (error) {
    return { problem: `This begins as JSON and is none: ${error.message}` };
  }
  if (Array.isArray(value)) value = { messages: value };
  if (Array.isArray(value.messages)) return turns(value.messages, value);
  for (const key of ["text", "prompt", "conversations", "conversation"]) {
    if (key in value) return { record: value, says: `JSON with “${key}”, sent as it is` };
  }
  return { problem: "This JSON has no “messages”, “prompt” and “response”, or “text”" };
}

function fromLines(typed) {
  const messages = [];
  for (const line of typed.split(/\r?\n/)) {
    const begins = /^\s*([A-Za-z]+)\s*:\s?(.*)$/.exec(line);
    const role = begins && ROLES[begins[1].toLowerCase()];
    if (role) messages.push({ role, content: begins[2] });
    else if (messages.length) messages[messages.length - 1].content += `\n${line}`;
    else if (line.trim()) return { problem: "The first line needs a role: “user: …”, “assistant: …”, or paste JSON" };
  }
  for (const message of messages) message.content = message.content.replace(/\s+$/, "");
  return turns(messages, { messages });
}

function turns(messages, record) {
  if (!messages.length) return { problem: "No turn is there: “user: …”, “assistant: …”" };
  const roles = messages.map((message) => String(object(message).role ?? "?"));
  return { record, says: `${roles.length} turn${roles.length === 1 ? "" : "s"} (${roles.slice(-6).join(", ")}); the last one is judged` };
}

function request() {
  const found = understood(document.querySelector("input[name=kind]:checked").value, at("input").value);
  if (!found.record) return found;
  const model = at("model").value;
  return { ...found, body: { ...(model ? { model } : {}), input: found.record, explain: true } };
}

// ---------------------------------------------------------------- the same request, to copy

const endpoint = () => new URL("v1/score", document.baseURI).href;

function curl(body, key) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl ${quoted(endpoint())}`, `-H 'Content-Type: application/json'`];
  if (key) lines.push(`-H "Authorization: Bearer $EDGEGUARD_KEY"`);
  return [...lines, `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");
}

function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (isObject(value)) return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${literal(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}

function python(body, key) {
  const header = key ? `, "Authorization": "Bearer " + os.environ["EDGEGUARD_KEY"]` : "";
  return [
    `import json${key ? ", os" : ""}, urllib.request`,
    "",
    `body = ${literal(body)}`,
    `request = urllib.request.Request(`,
    `    ${JSON.stringify(endpoint())},`,
    `    data=json.dumps(body).encode(),`,
    `    headers={"Content-Type": "application/json"${header}},`,
    `)`,
    `row = json.load(urllib.request.urlopen(request))["results"][0]`,
    `print(row["flagged"], row["unsafe"], row["category_scores"])`,
  ].join("\n");
}

function showRequest() {
  const found = request();
  at("understood").textContent = found.problem ?? found.says;
  const body = found.body ?? { input: { text: at("input").placeholder } };
  at("curl").textContent = curl(body, !at("key-row").hidden);
  at("python").textContent = python(body, !at("key-row").hidden);
}

async function copy(button) {
  const code = at(button.dataset.of);
  try {
    await navigator.clipboard.writeText(code.textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(code); // no clipboard without https: what is selected can be copied by hand
    say("Selected; copy it with Ctrl+C.");
  }
}

// ---------------------------------------------------------------- asking the server

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  at("error").textContent = text;
  say("");
}

/** The reply as an object; throws an Error whose message is for the reader. */
async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  const key = at("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(/headers|ByteString|ISO-8859/i.test(error.message) ? "An API key has letters, digits and signs of ASCII alone." : "The server cannot be reached. Is it still running?");
  }
  let value = null;
  try {
    value = await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (reply.ok && isObject(value)) return value;
  if (reply.status === 401 || reply.status === 403) askForKey();
  const message = object(object(value).error).message ?? `The server answered ${reply.status} ${reply.statusText}, and not with what this page expects.`;
  const wait = reply.headers.get("Retry-After");
  throw new Error(wait ? `${message} (try again in ${wait} s)` : String(message));
}

function askForKey() {
  const first = at("key-row").hidden;
  at("key-row").hidden = false;
  showRequest();
  if (first) at("key").focus();
}

async function send() {
  if (state.request) {
    state.request.abort();
    return;
  }
  const found = request();
  if (!found.body) {
    fail(found.problem || "There is no text to judge: type one.");
    at("input").focus();
    return;
  }
  const running = new AbortController();
  state.request = running;
  at("send").textContent = "Stop";
  at("ask").setAttribute("aria-busy", "true");
  at("error").textContent = "";
  forget();
  say("Scoring…");
  try {
    const reply = await ask("v1/score", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(found.body), signal: running.signal });
    const row = object(reply.results?.[0]);
    if (isObject(row.error)) throw new Error(`Not scored: ${row.error.message ?? "no reason was given"} (${row.error.type ?? "error"})`);
    if (typeof row.flagged !== "boolean" || !isNumber(row.unsafe)) throw new Error("Not scored: the server's reply has no verdict.");
    if (!state.models.length) await loadModels();
    state.row = row;
    showResult();
    say("");
    at("result-title").focus({ preventScroll: true });
    at("result").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else fail(error.message);
  } finally {
    state.request = null;
    at("send").textContent = "Score";
    at("ask").removeAttribute("aria-busy");
  }
}

/** An old result must not stand beside a new text that failed. */
function forget() {
  state.row = null;
  at("heard").textContent = "";
  at("result").hidden = true;
  at("answers").hidden = true;
}

// ---------------------------------------------------------------- models

async function loadModels() {
  const reply = await ask("v1/models");
  const chosen = at("model").value;
  state.models = (Array.isArray(reply.data) ? reply.data : []).filter((model) => isObject(model) && typeof model.id === "string");
  at("model").replaceChildren(...state.models.map((model) => element("option", { value: model.id, text: model.id })));
  if (state.models.some((model) => model.id === chosen)) at("model").value = chosen;
  at("model-row").hidden = state.models.length < 2;
  chooseModel();
}

const meta = () => object(state.models.find((model) => model.id === at("model").value)?.meta);

function chooseModel() {
  const about = meta();
  const named = about.profile && about.profile !== at("model").value ? `profile ${about.profile}` : "";
  at("about").textContent = [state.models.length === 1 ? at("model").value : "", named, about.estimator, about.calibrated ? "calibrated" : ""].filter(Boolean).join(" · ");
  resetThresholds();
  showRequest();
}

function resetThresholds() {
  state.thresholds = { ...object(meta().thresholds) };
  if (state.row) showResult();
}

function threshold(label) {
  const own = state.thresholds[label] ?? state.thresholds.default;
  return isNumber(own) ? own : 0.5;
}

// ---------------------------------------------------------------- the result

/** Label → what it is called, "unsafe" first, then the taxonomy's order, then what else the row has. */
function labels(row) {
  const scores = object(row.category_scores);
  const known = (Array.isArray(meta().categories) ? meta().categories : []).filter((one) => isObject(one) && one.code in scores);
  const named = new Map([["unsafe", { name: "the verdict", description: "" }], ...known.map((one) => [one.code, one])]);
  for (const code of Object.keys(scores)) if (!named.has(code)) named.set(code, { name: "", description: "" });
  return named;
}

const score = (row, label) => (label === "unsafe" ? row.unsafe : row.category_scores[label]);

function decide(row) {
  const over = [...labels(row).keys()].filter((label) => score(row, label) >= threshold(label));
  const bands = object(meta().review); // label → from where on people look at it; "default" of the others
  const near = [...labels(row).keys()].filter((label) => score(row, label) >= (bands[label] ?? bands.default ?? Infinity));
  return { over, review: over.length ? [] : near };
}

function showVerdict() {
  const { over, review } = decide(state.row);
  const names = labels(state.row);
  const words = (found) => found.filter((label) => label !== "unsafe").map((label) => `${label} ${names.get(label).name ?? ""}`.trim()).join(", ");
  const verdict = over.length ? "Flagged" : review.length ? "For review" : "Not flagged";
  const moved = [...names.keys()].some((label) => threshold(label) !== serverThreshold(label));
  const why = words(over.length ? over : review);
  at("verdict").textContent = `${verdict}${why ? `: ${why}` : ""}. P(unsafe) ${shown(state.row.unsafe)}${moved ? ", by the thresholds on this page" : ""}.`;
  at("heard").textContent = at("verdict").textContent; // a region that was hidden until now is not read out: this one is always there
  at("verdict").className = over.length ? "flagged" : review.length ? "review" : "";
  for (const item of at("bars").children) item.classList.toggle("over", over.includes(item.dataset.label));
}

function serverThreshold(label) {
  const own = object(meta().thresholds)[label] ?? object(meta().thresholds).default;
  return isNumber(own) ? own : 0.5;
}

function bar(label, about) {
  const p = score(state.row, label);
  const [low, high] = Array.isArray(state.row.bounds?.[label]) ? state.row.bounds[label] : [p, p];
  const range = element("i");
  const fill = element("b");
  range.style.width = `${100 * inside(high)}%`;
  fill.style.width = `${100 * inside(p)}%`;
  const name = `threshold of ${label}${about.name ? `, ${about.name}` : ""}`;
  const value = Number(threshold(label).toPrecision(4)); // what there is room for; until it is moved, it is the exact one that decides
  const slider = element("input", { type: "range", min: "0", max: "1", step: "0.01", value, "aria-label": name });
  const number = element("input", { type: "number", class: "threshold", min: "0", max: "1", step: "any", value, title: threshold(label), "aria-label": `${name}, as a number`, inputmode: "decimal" });
  const set = (from, other) => {
    if (from.value === "" || !from.checkValidity()) return;
    state.thresholds[label] = Number(from.value);
    other.value = from.value;
    number.title = from.value;
    showVerdict();
  };
  slider.addEventListener("input", () => set(slider, number));
  number.addEventListener("input", () => set(number, slider));
  const title = element("span", { class: "label", title: about.description ?? "" }, element("b", { text: label }), about.name ?? "");
  const said = element("span", { class: "value" }, shown(p), element("small", { text: `${shown(low)} … ${shown(high)}` }));
  said.setAttribute("aria-label", `probability ${shown(p)}, between ${shown(low)} and ${shown(high)}`);
  said.setAttribute("role", "img"); // so that the label is read in the place of the bare numbers
  return element("li", { "data-label": label }, title, element("span", { class: "track" }, element("span", { class: "bar" }, range, fill), slider), said, number);
}

function showResult() {
  const row = state.row;
  at("result").hidden = false;
  at("bars").replaceChildren(...[...labels(row)].map(([label, about]) => bar(label, about)));
  showFields(object(row.fields));
  showFacts(row);
  showVerdict();
  showTrees(row.explanation, row.window);
}

function showFields(fields) {
  const parts = Object.entries(fields).map(([field, said]) => {
    const values = Object.entries(object(said)).map(([label, p]) => `${label} ${shown(p)}`).join(", ");
    return element("p", {}, element("b", { text: `${field}: ` }), values);
  });
  at("fields").replaceChildren(...parts);
}

function showFacts(row) {
  const tokens = object(row.tokens);
  const facts = {
    margin: isNumber(row.margin) ? `${row.margin.toFixed(2)} nats, log P(unsafe) − log P(safe)` : null,
    "not looked into": `${percent(row.unexplored)} of the answers`,
    "off the grammar": percent(row.off_grammar),
    tokens: isNumber(tokens.prompt) ? `${tokens.prompt} in the prompt, ${tokens.answer} in answers` : null,
    "left out": row.skipped ? `${row.skipped} turns, or parts of turns, that guards do not judge` : null,
    window: isObject(row.window) ? `number ${row.window.number} of ${row.window.of} was the worst, characters ${row.window.begin} to ${row.window.end}` : null,
    estimator: `${row.estimator ?? "–"}, ${row.calibrated ? "calibrated" : "not calibrated"}`,
    guard: `${row.guard ?? "–"}, profile ${row.profile ?? "–"}`,
    "model sha256": row.model_sha256,
  };
  const shownFacts = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined);
  at("facts").replaceChildren(...shownFacts.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: String(value) })]));
}

// ---------------------------------------------------------------- the tree of answers

function showTrees(explanation, window) {
  const found = object(explanation);
  const questions = Object.entries(object(found.questions));
  at("answers").hidden = false;
  if (!Array.isArray(found.places) && !questions.length) {
    at("answers-note").textContent = isObject(window) ? "The text was judged in windows; there is no one tree to draw." : "The server sent no tree.";
    at("tree").replaceChildren();
    return;
  }
  at("answers-note").textContent = `Token by token, with the mass that goes that way: the model's own, before calibration. Under ${percent(LEAST)} nothing is drawn.`;
  if (Array.isArray(found.places)) at("tree").replaceChildren(tree(found.places));
  else at("tree").replaceChildren(...questions.map(([code, one]) => question(code, object(one).places ?? [])));
}

function question(code, places) {
  const name = labels(state.row).get(code)?.name;
  return element("details", {}, element("summary", { text: `Question about ${code}${name ? `, ${name}` : ""}` }), tree(places));
}

/** A list in lists; places that lead to one place alone stand in a line with it. */
function tree(places) {
  const under = new Map();
  let drawn = 0;
  places.forEach((place, i) => {
    if (isObject(place) && isNumber(place.parent) && place.mass >= LEAST && drawn++ < MOST_PLACES) under.set(place.parent, [...(under.get(place.parent) ?? []), i]);
  });
  const below = (parent) => (under.get(parent) ?? []).sort((a, b) => places[b].mass - places[a].mass);
  const list = (parent) => element("ul", {}, ...below(parent).map(item));
  const item = (first) => {
    const chain = [first];
    while (below(chain.at(-1)).length === 1 && below(chain.at(-1))[0] > chain.at(-1)) chain.push(below(chain.at(-1))[0]);
    const last = places[chain.at(-1)];
    const pieces = chain.map((i) => element("code", { text: piece(places[i]) }));
    const names = Array.isArray(last.names) && last.names.length ? `names ${last.names.join(", ")}` : "";
    const rest = last.stop || last.explored ? "" : " (not looked into)";
    const node = element("li", {}, ...pieces, element("span", { class: "mass", text: percent(last.mass) }), element("span", { class: "note", text: `${names}${rest}` }));
    if (below(chain.at(-1)).length) node.append(list(chain.at(-1)));
    return node;
  };
  return list(0);
}

function piece(place) {
  return place.stop ? "end" : JSON.stringify(String(place.text)).slice(1, -1).replaceAll('\\"', '"');
}

// ---------------------------------------------------------------- begin

function begin() {
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("input").addEventListener("input", showRequest);
  at("input").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (!state.request) send();
  });
  for (const radio of document.querySelectorAll("input[name=kind]")) {
    radio.addEventListener("change", () => {
      const chat = document.querySelector("input[name=kind]:checked").value === "chat";
      at("input-label").textContent = chat ? "Conversation: a role before each turn, or JSON" : "Text";
      at("input").placeholder = chat ? "user: How do I pick a lock?\nassistant: With a tension wrench and a pick …" : "How do I pick a lock?";
      showRequest();
    });
  }
  at("model").addEventListener("change", () => {
    forget(); // another model's numbers would stand under this one's thresholds
    chooseModel();
  });
  at("key").addEventListener("change", () => loadModels().then(() => fail(""), (error) => fail(error.message)));
  at("reset").addEventListener("click", () => {
    resetThresholds();
    at("reset").focus();
  });
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copy(button));
  showRequest();
  loadModels().catch((error) => fail(error.message));
}

begin();
