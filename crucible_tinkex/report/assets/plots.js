// Drawing: small elements, scales, SVG plots and learning curves. Knows nothing of the page's state.
"use strict";
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5aa8", "#8c6d46"];
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];  // beside the colour, for those who see no colour

function el(name, attributes, ...children) {
  const svg = ["svg", "line", "circle", "path", "rect", "text", "g", "title"].includes(name) && attributes && attributes.svg;
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "svg" || value === null || value === undefined) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
}
const svg = (name, attributes, ...children) => el(name, { svg: true, ...attributes }, ...children);

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2).replace(/\.?0+e/, "e") : value.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}
function duration(s) {
  return s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

// A position 0..1 of every value: logarithmic where the values span orders of magnitude, by rank where they are words.
function scale(values) {
  const known = values.filter(v => v !== null && v !== undefined);
  if (!known.every(v => typeof v === "number")) {
    const words = [...new Set(known.map(String))];
    const at = v => words.length < 2 ? .5 : words.indexOf(String(v)) / (words.length - 1);
    return { at, ticks: words.map(w => [w, at(w)]) };
  }
  const low = Math.min(...known), high = Math.max(...known);
  const log = low > 0 && high / low >= 8;
  const f = log ? Math.log : x => x;
  const at = v => high === low ? .5 : (f(v) - f(low)) / (f(high) - f(low));
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  const inner = log ? Math.exp((Math.log(low) + Math.log(high)) / 2) : (low + high) / 2;
  const apart = distinct.every((v, i) => !i || at(v) - at(distinct[i - 1]) > .08);
  const ticks = distinct.length <= 6 && apart ? distinct : [low, inner, high];
  const digits = [3, 4, 5].find(d => new Set(ticks.map(t => number(t, d))).size === ticks.length) || 6;
  return { at, ticks: ticks.map(t => [number(t, digits), at(t)]) };
}

// One configuration's mean and seeds, on an axis that all rows share. With a leader: its line, and how far from it the row may be; else the interval of its mean.
function forest(found, at, leader, width = 190, height = 18) {
  const x = v => 6 + at(v) * (width - 12), y = height / 2, spread = !leader && found.half_width !== null;
  const low = leader ? found.low ?? null : spread ? found.mean - found.half_width : null;
  const high = leader ? found.high ?? null : spread ? found.mean + found.half_width : null;
  const fresh = new Set((found.fresh_seeds || []).map(String));
  return svg("svg", { width, height, role: "img", "aria-label": `${number(found.mean)}${low === null ? "" : `, ${number(low)} to ${number(high)}`}` },
    svg("line", { class: "axis", x1: 6, x2: width - 6, y1: y, y2: y }),
    leader ? svg("line", { class: "leader", x1: x(leader.mean), x2: x(leader.mean), y1: 0, y2: height }) : null,
    low === null ? null : svg("line", { class: "value", "stroke-width": 2, x1: x(low), x2: x(high), y1: y, y2: y }),
    ...Object.entries(found.seeds).filter(([, v]) => v !== null).map(([s, v]) => svg("line", { class: "seed", x1: x(v), x2: x(v), y1: y - (fresh.has(s) ? 8 : 4), y2: y + (fresh.has(s) ? 8 : 4) })),
    svg("circle", { class: "value", cx: x(found.mean), cy: y, r: 3.5 }));
}

// A target, where it is met, and the interval of what was measured.
function target(t, width = 190, height = 18) {
  const known = [t.target, t.value, t.low, t.high].filter(v => v !== null);
  const low = Math.min(...known), high = Math.max(...known), room = (high - low || Math.abs(high) || 1) * .15;
  const x = v => 6 + (v - low + room) / (high - low + 2 * room) * (width - 12), y = height / 2, at = x(t.target), up = t.direction === "max";
  return svg("svg", { width, height, role: "img", "aria-label": `${t.status}: target ${up ? "at least" : "at most"} ${number(t.target, 3)}${t.value === null ? "" : `, measured ${number(t.value)}`}` },
    svg("rect", { class: "aim", x: up ? at : 6, width: up ? width - 6 - at : at - 6, y: 1, height: height - 2 }),
    svg("line", { class: "axis", x1: 6, x2: width - 6, y1: y, y2: y }), svg("line", { class: "leader", x1: at, x2: at, y1: 0, y2: height }),
    t.low === null ? null : svg("line", { class: "value", "stroke-width": 2, x1: x(t.low), x2: x(t.high), y1: y, y2: y }),
    t.value === null ? null : svg("circle", { class: "value", cx: x(t.value), cy: y, r: 3.5 }));
}

// Parallel coordinates. `axes`: {name, of(row)}; drag on an axis to keep a range, double click (or Escape) to drop it.
function parallel(rows, axes, { chosen, brushes, changed }) {
  const width = Math.max(920, 130 * axes.length), height = 260, top = 34, bottom = 14;
  const x = i => 50 + i * (width - 100) / Math.max(1, axes.length - 1), y = p => height - bottom - p * (height - top - bottom);
  const scales = axes.map(a => scale(rows.map(a.of)));
  const kept = row => axes.every((a, i) => !brushes[a.name] || (scales[i].at(a.of(row)) >= brushes[a.name][0] && scales[i].at(a.of(row)) <= brushes[a.name][1]));
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", style: `min-width:${.8 * width}px`, role: "group", "aria-label": "parallel coordinates of all configurations" });
  for (const row of rows) {
    const points = axes.map((a, i) => `${x(i).toFixed(1)},${y(scales[i].at(a.of(row)) ?? .5).toFixed(1)}`);
    root.append(svg("path", { class: `line${kept(row) ? "" : " faded"}${chosen === row ? " chosen" : ""}`, d: "M" + points.join("L") }, svg("title", {}, row.label)));
  }
  axes.forEach((axis, i) => {
    let start = null;
    const place = event => { const box = root.getBoundingClientRect(); return Math.min(1, Math.max(0, (height - bottom - (event.clientY - box.top) * height / box.height) / (height - top - bottom))); };
    const brush = brushes[axis.name];
    root.append(svg("line", { class: "axis", x1: x(i), x2: x(i), y1: top, y2: height - bottom }),
      svg("text", { x: x(i), y: 14, "text-anchor": "middle", "font-weight": 600 }, axis.name),
      axis.note ? svg("text", { x: x(i), y: 27, "text-anchor": "middle" }, axis.note) : "",
      ...scales[i].ticks.map(([text, p]) => svg("text", { x: x(i) + 5, y: y(p) + 4 }, text)));
    if (brush) root.append(svg("rect", { class: "brushed", x: x(i) - 9, width: 18, y: y(brush[1]), height: Math.max(3, y(brush[0]) - y(brush[1])) }));
    root.append(svg("rect", {
      class: "brush", x: x(i) - 14, width: 28, y: top, height: height - top - bottom, tabindex: 0, role: "slider", "aria-valuetext": brush ? `${Math.round(brush[0] * 100)} to ${Math.round(brush[1] * 100)} % of its range` : "all", "data-key": `axis ${axis.name}`, "aria-label": `filter by ${axis.name}: arrow keys narrow, Escape clears`,
      onpointerdown: e => { start = place(e); e.target.setPointerCapture(e.pointerId); },
      onpointerup: e => { if (start === null) return; const end = place(e); const range = [Math.min(start, end), Math.max(start, end)]; start = null; changed(axis.name, range[1] - range[0] < .02 ? null : range); },
      ondblclick: () => changed(axis.name, null),
      onkeydown: e => { const [a, b] = brush || [0, 1], step = .1;
        const next = { Escape: null, ArrowUp: [Math.min(a + step, b), b], ArrowDown: [a, Math.max(b - step, a)] }[e.key];
        if (next !== undefined) { e.preventDefault(); changed(axis.name, next); } } }));
  });
  return { root, kept };
}

// Two settings against each other; the colour says the result, darker is better, and each cell says its number.
function map(rows, first, second, better) {
  const known = rows.filter(r => r.mean !== null && r.values[first] !== undefined && r.values[second] !== undefined);
  const width = 520, height = 300, x = scale(known.map(r => r.values[first])), y = scale(known.map(r => r.values[second]));
  const order = [...known].sort((a, b) => better(a.mean, b.mean)), best = known.find(r => r.place === 1) || order[0];
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", style: `min-width:${.9 * width}px;max-width:640px`, role: "img", "aria-label": "map of two settings" });
  const px = v => 60 + x.at(v) * (width - 110), py = v => height - 40 - y.at(v) * (height - 80);
  for (const [text, p] of x.ticks) root.append(svg("text", { x: 60 + p * (width - 110), y: height - 10, "text-anchor": "middle" }, text));
  for (const [text, p] of y.ticks) root.append(svg("text", { x: 8, y: height - 36 - p * (height - 80) }, text));
  known.forEach(r => {
    const rank = order.length < 2 ? 0 : order.indexOf(r) / (order.length - 1);
    root.append(svg("circle", { class: "value", cx: px(r.values[first]), cy: py(r.values[second]), r: r === best ? 9 : 7, "fill-opacity": (1 - .85 * rank).toFixed(2) }, svg("title", {}, `${r.label}: ${number(r.mean)}`)));
    if (known.length <= 40) root.append(svg("text", { x: px(r.values[first]), y: py(r.values[second]) - 11, "text-anchor": "middle", "font-weight": r === best ? 700 : 400 }, number(r.mean, 4)));
  });
  return root;
}

// Learning curves: per row the mean over its seeds, and a band from the lowest to the highest seed. `told` gets the step under the cursor, or null, and every row's values there.
function learning(host, rows, curves, unit, told) {
  const steps = [...new Set(rows.flatMap(r => r.trials.flatMap(t => (curves[t] || [[]])[0])))].sort((a, b) => a - b);
  const at = new Map(steps.map((s, i) => [s, i])), data = [steps], series = [{ label: "step" }], bands = [];
  const ink = getComputedStyle(document.body).color, grid = getComputedStyle(document.body).getPropertyValue("--line");
  rows.forEach((row, i) => {
    const colour = PALETTE[i % PALETTE.length], columns = [0, 1, 2].map(() => steps.map(() => null));
    const values = steps.map(() => []);
    for (const trial of row.trials) { const [s, v] = curves[trial] || [[], []]; s.forEach((step, k) => values[at.get(step)].push(v[k])); }
    values.forEach((found, k) => { if (found.length) { columns[0][k] = found.reduce((a, b) => a + b) / found.length; columns[1][k] = Math.min(...found); columns[2][k] = Math.max(...found); } });
    data.push(...columns);
    series.push({ label: row.label, stroke: colour, width: 2, dash: DASHES[Math.floor(i / PALETTE.length) % DASHES.length], spanGaps: true, points: { show: steps.length < 40 } },
      { stroke: "transparent", spanGaps: true, points: { show: false } }, { stroke: "transparent", spanGaps: true, points: { show: false } });
    bands.push({ series: [3 * i + 3, 3 * i + 2], fill: colour + "2e" });
  });
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid } };
  const values = index => rows.map((row, i) => { const [mean, low, high] = [1, 2, 3].map(k => data[3 * i + k][index]); return mean === null || mean === undefined ? null : { mean, low, high }; });
  let place = null;
  const point = index => { if (index !== place) { place = index; told(index === null ? null : steps[index], index === null ? rows.map(() => null) : values(index)); } };
  const plot = new uPlot({ width: host.clientWidth || 700, height: 320, scales: { x: { time: false } }, series, bands, axes: [{ ...axis, label: "step", incrs: [1, 2, 5].flatMap(n => [0, 1, 2, 3, 4, 5, 6].map(e => n * 10 ** e)).sort((a, b) => a - b) }, { ...axis, label: unit, size: 64 }], cursor: { focus: { prox: 16 } }, hooks: { setCursor: [u => point(u.cursor.idx ?? null)] } }, data, host);
  host.onkeydown = e => {
    const last = steps.length - 1, now = place ?? -1, to = { ArrowRight: Math.min(last, now + 1), ArrowLeft: Math.max(0, now < 0 ? last : now - 1), Home: 0, End: last }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    plot.setCursor({ left: plot.valToPos(steps[to], "x"), top: plot.bbox.height / devicePixelRatio / 2 });
  };
  return plot;
}
