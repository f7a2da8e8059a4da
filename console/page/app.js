// The console's page: it reads one stream of samples and sends three kinds of orders.

import { Chart } from "./chart.js";

const KEPT = 300; // seconds
const STATES = ["cold", "restored", "busy", "frozen"];

const samples = [];
const requests = new Map(); // by second since the epoch
let activity = { load: false, activities: [] };
let cursor = null;

const $ = (id) => document.getElementById(id);
const latest = () => samples.at(-1);
const whole = (value) => Math.round(value).toLocaleString("en");
const duration = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`);
const clock = (milliseconds) => new Date(milliseconds).toLocaleTimeString("en-GB");

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Charts

const over = (read) => () => samples.map((sample) => [sample.time, read(sample)]);

function environmentsIn(sample, state) {
  if (!sample.environments) return null;
  return Object.values(sample.environments).reduce((sum, each) => sum + (each[state] ?? 0), 0);
}

function everySecond(read) {
  const end = Math.floor((latest()?.time ?? 0) / 1000);
  return Array.from({ length: KEPT }, (_, i) => end - KEPT + 1 + i).map((second) => [second * 1000, read(requests.get(second))]);
}

const answered = (name) => () => everySecond((found) => found?.statuses[name] ?? 0);
const took = (name) => () => everySecond((found) => found?.[name] ?? null);
const limit = (name, value) => (value ? [{ name, value }] : []);

const charts = [
  new Chart({
    title: "Connections to PostgreSQL",
    kind: "line",
    series: [
      { name: "all backends", colour: "violet", values: over((sample) => sample.database?.total ?? null) },
      { name: "the pooler’s", colour: "blue", values: over(({ pooler }) => (pooler ? pooler.sv_active + pooler.sv_free : null)) },
    ],
    limits: () => [...limit("max_connections", latest()?.max_connections), ...limit("budget", latest()?.budget)],
    format: whole,
  }),
  new Chart({
    title: "Requests per second",
    kind: "bars",
    series: [
      { name: "2xx", colour: "teal", values: answered("2xx") },
      { name: "4xx", colour: "amber", values: answered("4xx") },
      { name: "5xx", colour: "red", values: answered("5xx") },
    ],
    format: whole,
  }),
  new Chart({
    title: "Environments",
    kind: "stack",
    series: [
      { name: "frozen", colour: "grey", values: over((sample) => environmentsIn(sample, "frozen")) },
      { name: "busy", colour: "blue", values: over((sample) => environmentsIn(sample, "busy")) },
      { name: "restoring", colour: "teal", values: over((sample) => environmentsIn(sample, "restored")) },
      { name: "cold start", colour: "amber", values: over((sample) => environmentsIn(sample, "cold")) },
    ],
    format: whole,
  }),
  new Chart({
    title: "Time to answer",
    kind: "line",
    series: [
      { name: "p95", colour: "amber", values: took("p95") },
      { name: "p50", colour: "blue", values: took("p50") },
    ],
    format: (seconds) => (seconds === 0 ? "0" : duration(seconds)),
    least: 0.02,
  }),
  new Chart({
    title: "Client connections",
    kind: "stack",
    series: [
      { name: "connected", colour: "blue", values: over((sample) => sample.pooler?.cl_active ?? null) },
      { name: "waiting", colour: "amber", values: over((sample) => sample.pooler?.cl_waiting ?? null) },
    ],
    format: whole,
  }),
  new Chart({
    title: "Longest wait in the queue",
    kind: "line",
    series: [{ name: "wait", colour: "amber", values: over((sample) => sample.pooler?.longest_wait ?? null) }],
    format: (seconds) => (seconds === 0 ? "0" : duration(seconds)),
    least: 0.5,
  }),
];

function drawCharts() {
  const now = latest()?.time;
  if (!now) return;
  const view = { now, seconds: Number($("window").value), cursor, activities: activity.activities };
  for (const chart of charts) chart.draw(view);
}

// Tiles

class Tile {
  constructor(title, colours = ["blue"]) {
    this.value = make("p", { className: "value" });
    this.detail = make("p", { className: "detail" });
    this.bars = colours.map((colour) => make("i", { className: colour }));
    const track = make("div", { className: "track", ariaHidden: "true" }, ...this.bars);
    $("tiles").append(make("div", { className: "tile" }, make("h2", { textContent: title }), this.value, this.detail, ...(colours.length ? [track] : [])));
  }

  show(value, detail, of = null, shares = []) {
    this.value.replaceChildren(value, ...(of === null ? [] : [make("small", { textContent: ` of ${of}` })]));
    this.detail.textContent = detail;
    this.bars.forEach((bar, i) => {
      bar.style.width = `${Math.min(1, shares[i] ?? 0) * 100}%`;
      bar.classList.toggle("full", this.bars.length === 1 && (shares[i] ?? 0) >= 0.9);
    });
  }
}

const tiles = {
  environments: new Tile("Environments", ["amber", "teal", "blue", "grey"]),
  clients: new Tile("Client connections"),
  queue: new Tile("Queue of the pooler", ["amber"]),
  servers: new Tile("Server connections"),
  database: new Tile("PostgreSQL backends", ["violet"]),
  requests: new Tile("Requests", ["teal", "amber", "red"]),
};

function showTiles(sample) {
  showEnvironments(sample);
  showPooler(sample);
  const { database, max_connections: most } = sample;
  if (database) tiles.database.show(whole(database.total), `${database.active} active`, whole(most), [database.total / most]);
  else tiles.database.show("–", sample.running ? "no answer" : "");
  showRequests(sample);
}

function showEnvironments(sample) {
  if (!sample.environments) return tiles.environments.show("–", "");
  const counts = STATES.map((state) => environmentsIn(sample, state));
  const sum = counts.reduce((a, b) => a + b, 0);
  const detail = `${counts[0] + counts[1]} starting, ${counts[2]} busy, ${counts[3]} frozen`;
  tiles.environments.show(whole(sum), detail, null, counts.map((count) => (sum ? count / sum : 0)));
}

function showPooler({ pooler, budget, running }) {
  if (!pooler) {
    for (const tile of [tiles.clients, tiles.queue, tiles.servers]) tile.show("–", running ? "no task answers" : "");
    return;
  }
  const clients = pooler.cl_active + pooler.cl_waiting;
  const servers = pooler.sv_active + pooler.sv_free;
  tiles.clients.show(whole(clients), `${pooler.cl_waiting} waiting`, whole(pooler.max_client_conn), [clients / pooler.max_client_conn]);
  tiles.queue.show(whole(pooler.cl_waiting), `longest wait ${duration(pooler.longest_wait)}`, null, [clients ? pooler.cl_waiting / clients : 0]);
  tiles.servers.show(whole(servers), `${pooler.sv_active} in use, ${pooler.sv_free} free`, whole(budget), [servers / budget]);
}

function showRequests(sample) {
  const end = Math.floor(sample.time / 1000);
  const seconds = [1, 2, 3, 4, 5].map((back) => requests.get(end - back)).filter(Boolean);
  const count = (name) => seconds.reduce((sum, each) => sum + (each.statuses[name] ?? 0), 0);
  const counts = ["2xx", "4xx", "5xx"].map(count);
  const sum = counts.reduce((a, b) => a + b, 0);
  const window = Number($("window").value);
  const errors = [...requests.values()].filter((each) => each.second > end - window).reduce((all, each) => all + (each.statuses["5xx"] ?? 0), 0);
  tiles.requests.value.dataset.errors = errors;
  tiles.requests.show(`${(sum / 5).toFixed(sum < 50 ? 1 : 0)}/s`, `${whole(errors)} errors in ${window / 60} min`, null, counts.map((each) => (sum ? each / sum : 0)));
}

// Tables

function fill(table, rows, nothing) {
  const body = $(table).tBodies[0];
  const empty = make("tr", {}, make("td", { className: "note", colSpan: 9, textContent: nothing }));
  body.replaceChildren(...(rows.length ? rows : [empty]));
}

function row(...cells) {
  return make("tr", {}, ...cells.map((cell) => (cell instanceof Node ? cell : make("td", typeof cell === "number" ? { className: "number", textContent: whole(cell) } : { textContent: cell }))));
}

function showTables(sample) {
  const tasks = sample.tasks.map(({ address, state, pools }) => {
    const shown = make("td", { textContent: pools || state !== "RUNNING" ? state.toLowerCase() : "no answer", className: pools ? "good" : "warn" });
    return row(address, shown, ...(pools ? [pools.cl_active + pools.cl_waiting, pools.cl_waiting, pools.sv_active, pools.sv_free] : ["", "", "", ""]));
  });
  fill("tasks", tasks, "No task runs.");
  const functions = Object.entries(sample.environments ?? {}).sort(([a], [b]) => a.localeCompare(b));
  fill("functions", functions.map(([name, states]) => row(name, ...STATES.map((state) => states[state] ?? 0))), "No function is deployed.");
}

function showState(sample) {
  const deployed = Object.keys(sample.environments ?? {}).length > 0;
  say("cloud", sample.running ? "Running" : "The cloud does not answer", sample.running ? "running" : "away");
  const more = (sample.more_apis ?? []).map(({ name, url }) => `${url} (${name})`);
  $("api").textContent = sample.api_url ? [`API ${sample.api_url}`, ...more].join(", ") : "";
  $("hint").hidden = !sample.running || deployed;
  $("hint").textContent = "Nothing is deployed: `.venv/bin/python -m lambda_pg_cdk.local deploy` deploys the app.";
}

// Write to a live region only if its text changes.
function say(id, text, state = "") {
  if ($(id).textContent === text && $(id).dataset.state === state) return;
  $(id).textContent = text;
  $(id).dataset.state = state;
}

// Storms and faults

function running(kind) {
  return activity.activities.find((each) => each.kind === kind && each.state === "running");
}

function showActivity() {
  const [storm, fault] = [running("storm"), running("fault")];
  document.querySelector("#storm button").setAttribute("aria-disabled", String(Boolean(storm)));
  for (const button of document.querySelectorAll("#faults button")) {
    button.setAttribute("aria-disabled", String(Boolean(fault)));
    button.querySelector("span").textContent = stateOf(button.dataset.name);
  }
  $("load").setAttribute("aria-pressed", String(activity.load));
  $("load").textContent = activity.load ? "Stop the steady load" : "Start the steady load";
  if (storm || fault) say("said", [storm, fault].filter(Boolean).map((each) => `${each.title}: ${each.detail || "running"}`).join(" · ") + "…");
  else if ($("said").dataset.state !== "bad") say("said", "");
  showStorms();
  showLog();
}

function stateOf(fault) {
  const last = activity.activities.findLast((each) => each.kind === "fault" && each.name === fault);
  return last ? ` · ${last.state}` : "";
}

function showStorms() {
  const storms = activity.activities.filter((each) => each.kind === "storm" && each.state !== "running").reverse();
  if (!storms.length) return;
  const { result, state, title, detail } = storms[0];
  say("verdict", result ? `${title}: ${result.served} served, ${result.failed} failed; half within ${duration(result.p50_ms / 1000)}, all within ${duration(result.max_ms / 1000)}.` : `${title} ${state}: ${detail}`);
  $("results").hidden = false;
  fill("results", storms.map(stormRow), "");
}

function stormRow({ began, name, title, result, detail }) {
  if (!result) return row(clock(began), name, make("td", { className: "bad", colSpan: 7, textContent: `${title}: ${detail}` }));
  const failed = make("td", { className: `number ${result.failed ? "bad" : "good"}`, textContent: whole(result.failed) });
  const times = ["p50_ms", "p95_ms", "max_ms"].map((key) => make("td", { className: "number", textContent: duration(result[key] / 1000) }));
  const causes = Object.entries(result.failures).map(([cause, count]) => `${count} × ${cause}`).join("; ") || "none";
  return row(clock(began), name, result.requests, result.served, failed, ...times, causes);
}

function showLog() {
  const entries = [...activity.activities].reverse().map((each) => {
    const state = make("span", { className: { running: "warn", ended: "good", failed: "bad" }[each.state], textContent: each.state });
    const took = each.ended ? ` after ${duration((each.ended - each.began) / 1000)}` : "";
    return make("li", {}, make("time", { textContent: clock(each.began) }), `${each.title}: `, state, took, each.state === "failed" ? `: ${each.detail}` : "");
  });
  if (entries.length) $("log").replaceChildren(...entries);
}

async function order(path, body) {
  say("said", "");
  try {
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (!response.ok) say("said", (await response.json()).error, "bad");
  } catch {
    say("said", "The console does not answer.", "bad");
  }
}

function offer({ targets, counts, faults }) {
  if ($("target").options.length) return;
  $("target").replaceChildren(...Object.entries(targets).map(([value, textContent]) => make("option", { value, textContent })));
  $("count").replaceChildren(...counts.map((value) => make("option", { value, textContent: value, selected: value === 100 })));
  $("faults").replaceChildren(...faults.map(({ name, title }) => {
    const button = make("button", { type: "button" }, title, make("span"));
    button.dataset.name = name;
    button.addEventListener("click", () => order("faults", { name }));
    return button;
  }));
}

// The stream

function take(sample) {
  for (const each of sample.requests ?? []) requests.set(each.second, each);
  const oldest = sample.time / 1000 - KEPT;
  for (const second of requests.keys()) if (second < oldest) requests.delete(second);
  samples.push({ ...sample, requests: undefined });
  while (samples[0].time < oldest * 1000) samples.shift();
}

function show() {
  const sample = latest();
  if (!sample) return;
  showState(sample);
  showTiles(sample);
  showTables(sample);
  drawCharts();
}

function listen() {
  const stream = new EventSource("stream");
  const on = (event, work) => stream.addEventListener(event, ({ data }) => work(JSON.parse(data)));
  on("history", (history) => {
    samples.length = 0;
    history.samples.forEach(take);
    activity = history.activity;
    offer(history);
    showActivity();
    show();
  });
  on("sample", (sample) => { take(sample); show(); });
  on("activity", (current) => { activity = current; showActivity(); drawCharts(); });
  stream.onerror = () => {
    say("cloud", "The console does not answer; retrying", "away");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

$("storm").addEventListener("submit", (event) => {
  event.preventDefault();
  order("storms", { target: $("target").value, requests: Number($("count").value) });
});
$("load").addEventListener("click", () => order("load", { on: !activity.load }));
$("window").addEventListener("change", show);
window.addEventListener("resize", drawCharts);
for (const chart of charts) {
  $("charts").append(chart.figure);
  chart.svg.addEventListener("pointermove", ({ offsetX }) => { cursor = chart.timeAt(offsetX); drawCharts(); });
  chart.svg.addEventListener("pointerleave", () => { cursor = null; drawCharts(); });
}
listen();
