// Making elements, writing numbers and times, tables that sort, files to keep. Data reaches the page as text nodes only.

const facts = JSON.parse(document.getElementById("facts").textContent);
const result = unpacked(facts.result);

// A limit that is the same wherever there is a score comes once, as {"same": limit}.
function unpacked(given) {
  for (const parts of Object.values(given.timeline ?? {})) {
    for (const one of Object.values(parts).flatMap((group) => group.features)) {
      if (!Array.isArray(one.limit)) one.limit = one.score.map((score) => (score === null ? null : one.limit.same));
    }
  }
  return given;
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const byId = (id) => document.getElementById(id);
const fill = (id, ...children) => byId(id).replaceChildren(...children.flat(3).filter(Boolean));
const list = (value) => value ?? [];
const say = (text) => {
  byId("said").textContent = text;
};

// Numbers and times

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const THREE = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const NONE = "–";

function number(value) {
  if (value === null || value === undefined) return NONE;
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e12) return WHOLE.format(value);
  if (size >= 1e12 || size < 0.001) return value.toExponential(2);
  return size >= 1000 ? WHOLE.format(value) : THREE.format(value);
}

// A number of the result: the element holds it whole, the text rounds it.
function shown(value, text = number(value)) {
  return value === null || value === undefined ? text : el("data", { value: String(value) }, text);
}

const percent = (value) => (value === null || value === undefined ? NONE : `${THREE.format(100 * value)} %`);
const many = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;

function moment(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? number(seconds) : date.toISOString().slice(0, 19).replace("T", " ") + "Z";
}

const time = (seconds) => (seconds === null || seconds === undefined ? NONE : el("time", {}, moment(seconds)));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  for (const [size, name] of [
    [86400, "days"],
    [3600, "h"],
    [60, "min"],
  ]) {
    if (Math.abs(seconds) >= 2 * size) return `${THREE.format(seconds / size)} ${name}`;
  }
  return `${THREE.format(seconds)} s`;
}

function median(values) {
  const sorted = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const largest = (values) => values.reduce((most, value) => (value !== null && value > most ? value : most), -Infinity);
const smallest = (values) => values.reduce((least, value) => (value !== null && value < least ? value : least), Infinity);

// Tables. A column: {title, of: row -> value that sorts, show: row -> what is seen, number, text}

const FIRST_ROWS = 100;

function table(caption, columns, rows, { sort = null, down = false, chosen = null } = {}) {
  const head = el("tr");
  const body = el("tbody");
  const more = el("button", {
    type: "button",
    hidden: true,
    onclick: () => {
      all = true;
      write();
    },
  });
  let [by, falling, all] = [sort, down, false];

  function write() {
    const ordered = by === null ? rows : [...rows].sort((a, b) => compared(columns[by].of(a), columns[by].of(b), falling));
    const cells = (row) =>
      columns.map((column) => el("td", { class: kindOf(column) }, column.show ? column.show(row) : number(column.of(row))));
    const written = all ? ordered : ordered.slice(0, FIRST_ROWS);
    body.replaceChildren(...written.map((row) => el("tr", { class: chosen?.(row) ? "chosen" : null }, cells(row))));
    more.hidden = written.length === rows.length;
    more.textContent = `Show all ${number(rows.length)} rows`;
    [...head.children].forEach((cell, place) => {
      if (place === by) cell.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  columns.forEach((column, place) => {
    const turn = () => {
      [by, falling] = [place, place === by ? !falling : false];
      write();
    };
    const title = rows.length > 1 && column.of ? el("button", { type: "button", onclick: turn }, column.title) : column.title;
    head.append(el("th", { scope: "col", class: kindOf(column) }, title));
  });
  write();
  const drawn = el("table", { "aria-label": caption }, el("thead", {}, head), body);
  const node = el(
    "div",
    {},
    el("p", { class: "caption" }, caption),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, drawn),
    more,
  );
  node.rewrite = write;
  return node;
}

const kindOf = (column) => (column.number ? "number" : column.text ? "text" : column.name ? "name" : column.tags ? "tags" : null);

// What is not there comes last, whichever way.
function compared(a, b, falling) {
  const [noA, noB] = [a === null || a === undefined, b === null || b === undefined];
  if (noA || noB) return noA - noB;
  const order = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b;
  return falling ? -order : order;
}

// Files

function keep(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`${name} is being saved`);
}

// A spreadsheet takes a text that starts like this for a formula.
const FORMULA = /^[=+\-@\t\r]/;

function csv(header, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const safe = FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

async function copy(text, place) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(place);
    document.execCommand("copy");
  }
  say("copied");
}
