// The page: one section a sweep. State is what was chosen, brushed and sorted; `draw` shows it.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const CURVES_SHOWN = 8, ROWS_SHOWN = 200;
const views = new Map();

function label(found, axes) {
  return found.reference ? "untrained base" : axes.map(a => `${a.name} ${number(found.values[a.key], 3)}`).join(", ") || "the one configuration";
}
function literal(value) { return `'${String(value).replaceAll("'", "''")}'`; }
function sql(sweep, text) { return `crucible query ${sweep.reproduce.arguments} "${text}"`; }
function query(sweep, found) { return sql(sweep, `SELECT * FROM steps WHERE trial_id IN (${found.trials.map(literal).join(", ")})`); }
const STANDING = { "best": "best", "not separable": "≈ best", "worse": "worse", "does not compete": "–" };
function copy(text, what, more = {}) {
  const told = (button, ok) => {
    if (ok) { button.textContent = "copied"; button.setAttribute("aria-label", `copied ${what}`); return; }
    const field = el("input", { readonly: "", value: text, class: "copy", "aria-label": `${what}: copy it from here`, "data-key": `field ${what} ${text}` });
    button.replaceWith(field); field.focus(); field.select();  // no clipboard here: the next key copies
  };
  return el("button", { class: "copy", title: text, "aria-label": `copy ${what}`, "data-key": `copy ${what} ${text}`, ...more, onclick: e => {
    e.stopPropagation();
    const button = e.currentTarget;
    navigator.clipboard ? navigator.clipboard.writeText(text).then(() => told(button, true), () => told(button, false)) : told(button, false);
  } }, what);
}

class View {
  constructor(sweep) { this.chosen = null; this.brushes = {}; this.sort = { key: "place", up: true }; this.curve = this.curveOf(sweep); this.update(sweep); this.root = el("section", { id: `sweep-${sweep.name}` }); }
  curveOf(sweep) {  // what ranks, unless it was measured once per trial and something else tells more
    const tells = name => Object.values(sweep.curves[name] || {}).some(([steps]) => steps.length > 1);
    return [sweep.metric.name, ...Object.keys(sweep.curves)].find(tells) || sweep.metric.name;
  }
  update(sweep) {
    this.sweep = sweep;
    this.axes = sweep.axes.filter(a => new Set(sweep.configurations.filter(c => !c.reference).map(c => JSON.stringify(c.values[a.key]))).size > 1);
    if (!this.axes.length) this.axes = sweep.axes;
    this.rows = sweep.configurations.map((c, i) => ({ ...c, order: i, label: label(c, this.axes) }));
    this.chosen = this.chosen && this.rows.find(r => r.label === this.chosen.label) || null;
  }
  get better() { return this.sweep.metric.direction === "min" ? (a, b) => a - b : (a, b) => b - a; }

  draw() {
    const s = this.sweep;
    this.kept = () => true;
    const parallels = this.parallels(), restore = this.remembered();
    this.root.replaceChildren(...[
      el("h1", {}, s.name, " ", el("span", { class: `tag ${s.state}` }, s.state)),
      this.verdict(), this.facts(), this.targets(), this.leaderboard(), this.curvesSection(), parallels, this.mapSection(),
      this.faults("Stopped early, and why", s.stopped), this.faults("Failed or lost", s.failures), this.reproduce(),
    ].filter(Boolean));
    this.drawCurves();
    restore();
  }
  remembered() {  // focus, open details and scrolling survive that everything is drawn anew
    const all = selector => [...this.root.querySelectorAll(selector)], now = document.activeElement;
    const key = this.root.contains(now) ? now.dataset.key : null, open = new Map(all("details").map(d => [d.dataset.key, d.open]));
    const scrolled = all(".scroll").map(d => [d.dataset.key, d.scrollTop, d.scrollLeft]);
    return () => {
      for (const d of all("details")) if (open.has(d.dataset.key)) d.open = open.get(d.dataset.key);
      for (const [k, top, left] of scrolled) for (const d of all(".scroll")) if (d.dataset.key === k) { d.scrollTop = top; d.scrollLeft = left; }
      if (key) all("[data-key]").find(e => e.dataset.key === key)?.focus({ preventScroll: true });
    };
  }

  verdict() {
    const s = this.sweep, c = s.conclusion, notes = [...c.notes];
    if (s.stopped.length) notes.push(`${s.stopped.length} of ${s.trials.length} trials were stopped early; what they would have reached is not known`);
    return el("div", {}, el("p", { class: "verdict" }, s.verdict),
      notes.length ? el("ul", { class: "soft notes" }, ...notes.map(n => el("li", {}, n))) : null,
      s.rarely_worth ? el("p", { class: "soft" }, "So many seeds are rarely worth it: take the cheapest of them, or say with search.indifference which difference matters.") : null,
      s.surer ? el("p", { class: "soft" }, "To settle it: ", el("code", {}, s.surer), " ", copy(s.surer, "copy")) : null);
  }
  facts() {
    const s = this.sweep, spent = s.spent, tokens = spent.train_tokens + spent.prefill_tokens + spent.sample_tokens;
    const done = s.trials.filter(t => t.state === "done").length;
    const sum = column => `SELECT sum(${column}) FROM trials`;
    const facts = [["trials done", `${done} of ${s.trials.length}`, "SELECT state, count(*) FROM trials GROUP BY state"], ["training tokens", number(spent.train_tokens), sum("train_tokens")], ["all tokens", number(tokens)],
      ["session time", duration(spent.seconds), sum("seconds")], ...(s.state === "running" ? [] : [["wall time", duration(spent.wall_s)]])];  // known of runs that ended
    return el("ul", { class: "facts" }, ...facts.map(([name, value, text]) => el("li", {}, el("b", {}, value), el("span", { class: "soft" }, name, " "), text ? copy(sql(s, text), "SQL") : null)));
  }

  targets() {
    const quality = this.sweep.quality;
    if (!quality) return null;
    const MARKS = { "met": "✓", "missed": "✗", "not settled": "?", "unmeasured": "–" };
    const words = t => t.value === null ? "not measured" : `${number(t.value)}${t.low === null ? "" : ` (${number(t.low, 3)} to ${number(t.high, 3)})`}`;
    const rows = t => t.n === null ? "–" : t.n < t.min_n ? `${t.n}, ${t.min_n} are asked for` : number(t.n);
    return el("div", {}, el("h2", {}, "Quality targets"),
      el("p", { class: "soft" }, "Of the best trial, on the rows that it was evaluated on. Line: the target; shaded: where it is met; bar: the 95 % interval. Met or missed only where the whole interval is."),
      el("div", { class: "scroll", "data-key": "targets" }, el("table", { class: "targets" }, el("thead", {}, el("tr", {}, ...["metric", "status", "target", "measured", "rows", ""].map((h, i) => el("th", { class: [0, 1, 5].includes(i) ? "text" : null }, h)))),
        el("tbody", {}, ...quality.targets.map(t => el("tr", {}, el("td", { class: "text" }, t.metric), el("td", { class: "text" }, el("span", { class: `tag ${t.status.replace(" ", "-")}` }, `${MARKS[t.status]} ${t.status}`)), el("td", {}, `${t.direction === "max" ? "≥" : "≤"} ${number(t.target, 3)}`), el("td", {}, words(t)), el("td", {}, rows(t)),
          el("td", { class: "text" }, target(t))))))));
  }

  leaderboard() {
    const s = this.sweep, means = this.rows.filter(r => r.mean !== null).flatMap(r => [r.mean, r.low, r.high, ...Object.values(r.seeds)]).filter(v => v !== null && v !== undefined);
    const trained = this.rows.filter(r => r.mean !== null && !r.reference).flatMap(r => [r.mean, ...Object.values(r.seeds)]).filter(v => v !== null);
    const leader = this.rows.find(r => !r.reference && r.name === s.conclusion.leader), judged = s.conclusion.kind !== "nothing" && leader && leader.mean !== null;
    const all = scale(means), near = scale(trained.length ? trained : means), at = v => Math.min(1, Math.max(0, near.at(v)));
    const columns = [["place", "#", r => r.order], ...this.axes.map(a => [a.key, a.name, r => r.values[a.key]]),
      ["mean", `${s.metric.name} (${s.metric.direction})`, r => r.mean], ["n", "seeds", r => r.n], ...(judged ? [["standing", "verdict", r => r.standing]] : []), ["train_tokens", "tokens", r => r.train_tokens]];
    const value = Object.fromEntries(columns.map(([key, , of]) => [key, of]));
    const rows = [...this.rows].sort((a, b) => {
      const [x, y] = [value[this.sort.key](a), value[this.sort.key](b)];
      const order = x === y ? a.order - b.order : x === null || x === undefined ? 1 : y === null || y === undefined ? -1 : x > y ? 1 : -1;
      return this.sort.up ? order : -order;
    });
    const head = columns.map(([key, name]) => el("th", { "aria-sort": this.sort.key === key ? (this.sort.up ? "ascending" : "descending") : null },
      el("button", { "data-key": `sort ${key}`, onclick: () => { this.sort = { key, up: this.sort.key === key ? !this.sort.up : true }; this.draw(); } }, name, this.sort.key === key ? (this.sort.up ? " ▲" : " ▼") : "")));
    const cells = r => [r.place === null ? "–" : `${r.place}${r.shared ? "=" : ""}`, ...this.axes.map(a => r.reference ? "–" : number(r.values[a.key], 3)),
      r.mean === null ? "–" : `${number(r.mean)}${r.half_width === null ? "" : ` ± ${number(r.half_width, 2)}`}`,
      (r.missing_seeds.length ? `${r.n}/${r.n + r.missing_seeds.length}` : r.n) + (r.phase === "confirm" ? " fresh" : ""), ...(judged ? [r.reference ? "–" : STANDING[r.standing]] : []), number(r.train_tokens)];
    const shown = rows.slice(0, ROWS_SHOWN), key = r => `row ${r.trials[0] || r.order}`;
    if (!shown.some(r => key(r) === this.stop)) this.stop = shown.length ? key(shown[0]) : null;
    const body = shown.map(r => el("tr", {
      tabindex: key(r) === this.stop ? 0 : -1, "data-key": key(r), class: `${this.chosen === r ? "chosen" : ""}${this.kept(r) ? "" : " faded"}${judged && !r.reference && r.standing !== "worse" && r.standing !== "does not compete" ? " near" : ""}`, "aria-selected": this.chosen === r, onclick: () => this.choose(r),
      onfocus: e => this.stopAt(e.currentTarget), onkeydown: e => this.rowKey(e, r) },
      ...cells(r).map(c => el("td", {}, c)), el("td", {}, r.mean === null ? "" : forest(r, at, judged ? leader : null)),
      el("td", { class: "text" }, el("span", { class: `tag ${r.reference ? "" : r.state}` }, r.reference ? "base" : r.state)),
      el("td", {}, copy(query(s, r), "SQL", { tabindex: key(r) === this.stop ? 0 : -1 }))));
    const step = s.metric.at === "final" ? "last step" : "best step with a checkpoint";
    return el("div", {}, el("h2", {}, "Leaderboard"), el("p", { class: "soft" }, `${s.metric.about}, in ${s.metric.unit}, at the ${step}; ±: 95 % over the seeds, each row by itself, for a single look. Dot: mean; ticks: seeds${this.rows.some(r => r.fresh_seeds.length) ? " (tall: fresh ones, that chose nobody)" : ""}. ${judged ? `Bar: how far it may be from the best (line), an interval of ${100 - 100 * s.conclusion.terms.alpha} % for all rows together that holds at every look; one that stays off the line is worse. ≈: not separable from the best, or by less than ${s.conclusion.terms.zone}, which does not matter.` : "Bar: the same interval."}${s.placed_by_shared_seeds ? " A row above one with a better mean is better on the seeds that both have run." : ""}`),
      el("div", { class: "scroll", "data-key": "leaderboard" }, el("table", { role: "grid", "aria-label": "leaderboard: up and down move, Enter chooses" }, el("thead", {}, el("tr", {}, ...head, el("th", { class: "text" }, "mean and seeds"), el("th", { class: "text" }, "state"), el("th", {}, ""))), el("tbody", {}, ...body))),
      rows.length > ROWS_SHOWN ? el("p", { class: "soft" }, `and ${rows.length - ROWS_SHOWN} more; leaderboard.csv has all`) : null);
  }
  stopAt(row) {  // the table is one stop of the Tab key, with its row's button; up and down move in it
    this.stop = row.dataset.key;
    for (const other of row.parentNode.children) for (const e of [other, ...other.querySelectorAll("button.copy")]) e.setAttribute("tabindex", other === row ? 0 : -1);
  }
  rowKey(e, r) {
    const row = e.currentTarget, all = row.parentNode.children;
    const to = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: all[0], End: all[all.length - 1] }[e.key];
    if (to) { e.preventDefault(); to.focus(); }
    else if (e.target === row && (e.key === "Enter" || e.key === " ")) { e.preventDefault(); this.choose(r); }
  }
  choose(row) { this.chosen = this.chosen === row ? null : row; this.draw(); }

  curvesSection() {
    const names = Object.keys(this.sweep.curves);
    if (!names.length) return null;
    if (!names.includes(this.curve)) this.curve = names[0];
    this.plot = el("div", { tabindex: 0, role: "group", "data-key": "curves", class: "plot", "aria-label": "learning curves: left and right move along the steps" });
    this.legend = el("div", { class: "legend" }); this.readout = el("p", { class: "soft", role: "status" });
    const choice = el("select", { "aria-label": "metric", "data-key": "curve", onchange: e => { this.curve = e.target.value; this.drawCurves(); } },
      ...names.map(n => el("option", { value: n, selected: n === this.curve ? "" : null }, n)));
    return el("div", {}, el("h2", {}, "Learning curves"), el("p", { class: "soft" }, choice, ` mean over the seeds, band from the lowest to the highest; the first ${CURVES_SHOWN} of the leaderboard that are not filtered out, and the chosen one. Values: point at a step, or arrow keys.`), copy(sql(this.sweep, "SELECT * FROM steps ORDER BY trial_id, step"), "SQL"), this.plot, this.readout, this.legend);
  }
  drawCurves() {
    if (!this.plot) return;
    const curves = this.sweep.curves[this.curve], has = r => r.trials.some(t => curves[t] && curves[t][0].length);
    const rows = this.rows.filter(r => has(r) && !r.reference && this.kept(r)).slice(0, CURVES_SHOWN);
    if (this.chosen && has(this.chosen) && !rows.includes(this.chosen)) rows.push(this.chosen);
    this.plot.replaceChildren(); this.legend.replaceChildren();
    if (!rows.length) { this.plot.append(el("p", { class: "soft" }, "nothing was measured yet")); return; }
    const values = rows.map(() => el("b", {}));
    rows.forEach((r, i) => this.legend.append(el("span", {}, el("i", { style: `border-color:${PALETTE[i % PALETTE.length]};border-top-style:${i < PALETTE.length ? "solid" : "dashed"}` }), r.label, " ", values[i])));
    learning(this.plot, rows, curves, this.curve, (step, found) => {
      found.forEach((v, i) => { values[i].textContent = v === null ? "" : v.low === v.high ? number(v.mean) : `${number(v.mean)} (${number(v.low)} to ${number(v.high)})`; });
      const first = found.findIndex(v => v !== null);
      this.readout.textContent = step === null ? "" : first < 0 ? `step ${step}` : `step ${step}: ${rows[first].label} ${number(found[first].mean)}${found.length > 1 ? "; others below" : ""}`;
    });
  }

  parallels() {
    const rows = this.rows.filter(r => r.mean !== null && !r.reference);
    if (rows.length < 3 || !this.axes.length) return null;
    const axes = [...this.axes.map(a => ({ name: a.name, note: `explains ${Math.round(a.importance * 100)} %`, of: r => r.values[a.key] })), { name: this.sweep.metric.name, of: r => r.mean }];
    const { root, kept } = parallel(rows, axes, { chosen: this.chosen, brushes: this.brushes, changed: (name, range) => { range ? this.brushes[name] = range : delete this.brushes[name]; this.draw(); } });
    this.kept = r => r.reference || r.mean === null || kept(r);
    return el("div", {}, el("h2", {}, "Settings, the most important first"), el("p", { class: "soft" }, "Drag along an axis to keep a range (arrow keys, too); double click or Escape clears it. Table and curves follow."), el("div", { class: "scroll", "data-key": "parallel" }, root));
  }

  mapSection() {
    const numeric = this.axes.filter(a => this.rows.every(r => r.reference || typeof r.values[a.key] === "number"));
    if (numeric.length < 2) return null;
    const keys = numeric.map(a => a.key);
    this.map = this.map && this.map.every(k => keys.includes(k)) ? this.map : ["optimizer.learning_rate", "lora.rank"].every(k => keys.includes(k)) ? ["optimizer.learning_rate", "lora.rank"] : keys.slice(0, 2);
    const pick = i => el("select", { "aria-label": i ? "vertical" : "horizontal", "data-key": `map ${i}`, onchange: e => { this.map[i] = e.target.value; this.draw(); } }, ...numeric.map(a => el("option", { value: a.key, selected: this.map[i] === a.key ? "" : null }, a.name)));
    return el("div", {}, el("h2", {}, "Map"), el("p", { class: "soft" }, pick(0), " × ", pick(1), " darker is better"), el("div", { class: "scroll", "data-key": "map" }, map(this.rows.filter(r => !r.reference && this.kept(r)), ...this.map, this.better)));
  }

  faults(title, faults) {
    if (!faults.length) return null;
    return el("details", { "data-key": title, open: faults.length <= 12 ? "" : null }, el("summary", { "data-key": `summary ${title}` }, el("strong", {}, `${title} (${faults.length})`)), el("div", { class: "scroll", "data-key": `rows ${title}` }, el("table", {},
      el("tbody", {}, ...faults.slice(0, ROWS_SHOWN).map(f => el("tr", {}, el("td", { class: "text" }, f.trial), el("td", {}, `step ${f.step}`), el("td", { class: "text" }, el("span", { class: `tag ${f.state}` }, f.state)), el("td", { class: "text wrap" }, f.why || "")))))));
  }

  reproduce() {
    const r = this.sweep.reproduce, versions = Object.entries(r.versions).map(([k, v]) => `${k} ${v}`).join(", ");
    return el("div", {}, el("h2", {}, "Exactly this again"), el("p", {}, el("code", {}, r.command), " ", copy(r.command, "copy")),
      el("p", { class: "soft" }, [r.service && `service ${r.service}`, r.data && `data ${r.data}`, versions].filter(Boolean).join("; ")), r.experiment ? el("details", { "data-key": "experiment" }, el("summary", { "data-key": "summary experiment" }, "experiment.toml"), el("pre", {}, r.experiment)) : null);
  }
}

function overview(sweeps) {
  const row = s => { const best = s.configurations.find(c => c.place === 1);
    return el("tr", {}, el("td", { class: "text" }, el("a", { href: `#sweep-${s.name}` }, s.name)), el("td", { class: "text" }, s.metric.name), el("td", {}, best ? number(best.mean) : "–"), el("td", {}, s.trials.length), el("td", {}, number(s.spent.train_tokens)), el("td", { class: "text wrap" }, s.verdict)); };
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...["sweep", "metric", "best", "trials", "tokens", "verdict"].map((h, i) => el("th", { class: [0, 1, 5].includes(i) ? "text" : null }, h)))), el("tbody", {}, ...sweeps.map(row))));
}
const summary = el("div", { id: "overview" });

function show(sweeps) {
  const main = document.getElementById("report");
  if (sweeps.length > 1) { summary.replaceChildren(overview(sweeps)); if (!summary.isConnected) main.prepend(summary); }
  for (const sweep of sweeps) {
    const view = views.get(sweep.name) || new View(sweep);
    view.update(sweep);
    if (!views.has(sweep.name)) { views.set(sweep.name, view); main.append(view.root); }
    view.draw();
  }
}
show(DATA.sweeps);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => views.forEach(v => v.drawCurves()), 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach(v => v.drawCurves()));
if (DATA.live) setInterval(async () => {
  try { const answer = await fetch("data.json"); if (answer.status === 200) show((await answer.json()).sweeps); } catch { /* the server has ended: the page stays as it is */ }
}, 3000);
