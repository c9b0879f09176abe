// The head of the page: what was found, in a sentence and a few numbers, and the settings that are proposed.

const alarms = list(result.alarms);
// Of very many alarms only the first are told one by one.
const alarmCount = Math.max(alarms.length, (result.decisions?.retrain ?? 0) + (result.decisions?.alert ?? 0));
const drifts = list(result.known_drifts);
const models = list(result.models);
const held = Object.entries(result.decisions?.hold ?? {});
const heldCount = held.reduce((sum, [, count]) => sum + count, 0);

function writeHead() {
  byId("source").textContent = result.source || "Replay";
  document.title = `driftloop replay: ${result.source || ""}`;
  const stretch = result.span
    ? ["from ", time(result.span.first), " to ", time(result.span.last), `, ${duration(result.span.last - result.span.first)}`]
    : ["in the order of the rows; there are no times"];
  const asked = [result.since && `since ${result.since}`, result.until && `until ${result.until}`].filter(Boolean).join(", ");
  fill(
    "stretch",
    [many(result.events, "event"), ` of ${many(models.length, "model")}, `].map((text) => text),
    stretch,
    asked && ` (asked for: ${asked})`,
  );
  fill("banners", banners());
}

function banners() {
  const unreadable = result.unreadable?.count ?? 0;
  return [
    result.interrupted &&
      el(
        "div",
        { class: "banner bad", id: "interrupted" },
        el("strong", {}, "Interrupted. "),
        "The replay was stopped before its end: all numbers are of what had been read by then.",
      ),
    list(result.injected).length > 0 &&
      el(
        "div",
        { class: "banner", id: "injected" },
        el("strong", {}, "What if: this history was changed on purpose. "),
        "It did not happen like this. Injected:",
        el(
          "ul",
          {},
          result.injected.map((text) => el("li", {}, el("code", {}, text))),
        ),
      ),
    unreadable > 0 &&
      el(
        "div",
        { class: "banner", id: "unreadable" },
        el("strong", {}, shown(unreadable), ` ${unreadable === 1 ? "record" : "records"} could not be read. `),
        el("a", { href: "#replayed" }, "Which, and why"),
      ),
  ];
}

function writeAnswer() {
  fill("sentence", sentence());
  fill("tiles", tiles());
  fill("proposal", proposal());
}

function sentence() {
  const parts = [
    alarms.length ? `${many(alarmCount, "alarm")} in ${many(result.events, "event")}` : `No alarm in ${many(result.events, "event")}`,
  ];
  if (alarms.length && drifts.length) parts[0] += `, ${number(result.false_alarms?.count)} of them false`;
  const found = drifts.filter((one) => one.found).length;
  if (drifts.length) {
    const delay = median(drifts.filter((one) => one.found).map((one) => one.delay_events));
    const named =
      drifts.length === 1
        ? `The known drift was ${found ? "found" : "missed"}`
        : `${number(found)} of ${number(drifts.length)} known drifts found`;
    const late =
      delay === null
        ? ""
        : found > 1
          ? `, half of them within ${many(Math.round(delay), "event")}`
          : `, ${many(Math.round(delay), "event")} after it began`;
    parts.push(`${named}${late}`);
  }
  const started = result.decisions?.retrain ?? 0;
  parts.push(
    `${started ? many(started, "retraining") : "No retraining"} would have been started${heldCount ? `; ${many(heldCount, "decision")} held back` : ""}`,
  );
  return el("strong", {}, `${parts.join(". ")}.`);
}

function tiles() {
  const wrong = result.false_alarms;
  const found = drifts.filter((one) => one.found);
  const perMonth = wrong?.per_30d;
  const named = drifts.length ? "" : "no known drift was named, so each alarm counts; ";
  const told = [
    tile(
      "alarms",
      "Alarms",
      shown(alarmCount),
      alarmCount ? `${number(result.decisions?.retrain ?? 0)} to retrain, ${number(result.decisions?.alert ?? 0)} to alert` : "",
    ),
    wrong &&
      (perMonth === null || perMonth === undefined
        ? tile("false-alarms", "False alarms per 100,000 events", shown(wrong.per_100k_events), `${named}${number(wrong.count)} in all`)
        : tile(
            "false-alarms",
            "False alarms per 30 days",
            shown(perMonth),
            `${named}${number(wrong.count)} in ${number(wrong.days)} days; ${number(wrong.per_100k_events)} per 100,000 events`,
          )),
    drifts.length > 0 &&
      tile(
        "found",
        "Known drifts found",
        [shown(found.length), ` of ${number(drifts.length)}`],
        result.missed ? `${number(result.missed)} missed` : "none missed",
        result.missed ? "bad-text" : "good-text",
      ),
    found.length > 0 &&
      tile(
        "delay",
        "Median delay",
        shown(median(found.map((one) => one.delay_events))),
        `events${median(found.map((one) => one.delay_seconds)) === null ? "" : `, or ${duration(median(found.map((one) => one.delay_seconds)))}`}; of those found`,
      ),
    tile("started", "Retrainings started", shown(result.decisions?.retrain ?? 0), `${many(heldCount, "decision")} held back`),
    tile("events", "Events judged", shown(result.events), `${number(result.events_per_second)} per second`),
  ];
  return told.filter(Boolean);
}

function tile(id, title, value, more, tone = "") {
  return el(
    "dl",
    { class: "tile", id: `tile-${id}` },
    el("dt", {}, title),
    el("dd", { class: "value" }, value),
    more ? el("dd", { class: `small ${tone || "muted"}` }, more) : null,
  );
}

function proposal() {
  const proposed = result.proposal;
  if (!proposed) {
    return el(
      "p",
      { class: "muted" },
      list(result.tried).length
        ? "No setting is proposed: without known drifts nothing tells which of them is better."
        : "No other settings were tried; with --try the replay compares some and proposes one.",
    );
  }
  const code = el("code", {}, proposed.yaml);
  return el(
    "div",
    { class: "box" },
    el("h3", {}, "Proposed setting"),
    el("p", {}, sentenceOf(proposed.why)),
    el("pre", { tabindex: "0" }, code),
    el("button", { type: "button", class: "main", id: "copy", onclick: (event) => copied(event.target, proposed.yaml, code) }, "Copy"),
  );
}

const sentenceOf = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

async function copied(button, text, place) {
  await copy(text, place);
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
}

function writeSections() {
  const titles = {
    answer: "Answer",
    timeline: "Timeline",
    alarms: "Alarms",
    known: "Known drifts",
    accuracy: "Accuracy",
    tried: "Settings",
    decisions: "Decisions",
    replayed: "Replayed",
    downloads: "Downloads",
  };
  fill(
    "sections",
    el(
      "ul",
      {},
      Object.entries(titles).map(([id, title]) => el("li", {}, el("a", { href: `#${id}` }, title))),
    ),
  );
}
