// The rate–distortion plot: drawn to the width there is, with a pointer or arrow keys to read it by.

const METRICS = {
  psnr: { label: "PSNR", axis: "PSNR (RGB), dB" },
  ms_ssim_db: { label: "MS-SSIM", axis: "MS-SSIM, dB" },
};
const MARKERS = [
  "M-3.2,-3.2H3.2V3.2H-3.2Z",
  "M0,-4.2L4,3.2H-4Z",
  "M0,4.2L4,-3.2H-4Z",
  "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
  "M-4,-3.2V3.2L4,0Z",
  "M4,-3.2V3.2L-4,0Z",
  "M-2,-4H2L4,0L2,4H-2L-4,0Z",
  "M-1.4,-4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4Z",
];
const CIRCLE = "M-4.5,0A4.5,4.5 0 1 0 4.5,0A4.5,4.5 0 1 0 -4.5,0Z";
const DOT = "M-1.5,0A1.5,1.5 0 1 0 1.5,0A1.5,1.5 0 1 0 -1.5,0Z";
const DASHES = ["6 3", "2.5 2.5", "9 3 2 3", "5 2 1.5 2 1.5 2", "11 3"];
const NEAR = 36;

/** Gives each curve its class, marker and dash: ours black and thick, the measured rivals coloured, the published ones dashed. */
function styled(curves) {
  const count = { ours: 0, rival: 0, published: 0 };
  return curves.map((curve) => {
    const group = curve.ours ? "ours" : curve.published ? "published" : "rival";
    const number = count[group]++;
    const marker = group === "rival" ? MARKERS[number % MARKERS.length] : group === "ours" ? CIRCLE : null;
    const colour = group === "rival" ? `var(--series-${number % 8})` : group === "ours" ? "var(--ink)" : "var(--muted)";
    const dash = group === "published" ? DASHES[number % DASHES.length] : group === "ours" && number ? "7 3" : undefined;
    return { ...curve, group, marker, colour, dash };
  });
}

function sample(curve) {
  const style = `color:${curve.colour}`;
  const line = svg("line", { x1: 1, x2: 29, y1: 7, y2: 7, "stroke-dasharray": curve.dash, class: "line" });
  const mark = curve.marker ? svg("path", { d: curve.marker, transform: "translate(15 7)", class: "mark" }) : null;
  return svg("svg", { width: 30, height: 14, "aria-hidden": "true", class: curve.group, style }, line, mark);
}

/** What is said of a point, as lines. */
function told(curve, point) {
  const values = [`${fixed(point.bpp, 4)} bpp`];
  if (point.psnr !== null) values.push(`PSNR ${fixed(point.psnr, 2)} dB`);
  if (point.ms_ssim !== null && point.ms_ssim_db !== null) {
    values.push(`MS-SSIM ${fixed(point.ms_ssim, 4)} (${fixed(point.ms_ssim_db, 2)} dB)`);
  }
  return [point.setting || "published", ...values];
}

function ticks(low, high, most) {
  const step = [0.5, 1, 2, 5, 10, 20].find((size) => (high - low) / size <= most) || 50;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}

function rateTicks(low, high, narrow) {
  const leading = narrow ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7];
  const found = [];
  for (let power = -4; power < 3; power += 1) found.push(...leading.map((digit) => Number((digit * 10 ** power).toPrecision(2))));
  return found.filter((rate) => low <= rate && rate <= high);
}

/** The plot of curves; `metric(name)` switches between the keys of METRICS. */
function plot(given) {
  const curves = styled(given);
  const shown = new Set(curves);
  let metric = "psnr";
  let active = null; // {curve, at}: the point that is read
  let places = new Map(); // curve → [{x, y, point}], in rising order of rate
  const tip = html("div", { class: "tip", role: "status", hidden: true });
  const help = "Rate–distortion curves. Left and right arrow keys go along a curve, up and down to another one.";
  const drawing = svg("svg", { class: "plot", tabindex: "0", role: "application", "aria-label": help });
  const canvas = html("div", { class: "canvas" }, drawing, tip);

  function draw() {
    const width = canvas.clientWidth;
    if (!width) return;
    const height = Math.round(clamp(0.62 * width, 300, 540));
    const left = 38, right = 10, top = 28, bottom = 40;
    // What was measured sets the scale, also when it is hidden; published curves are cut off where they go beyond.
    const inside = (curve) => curve.points.filter((point) => point[metric] !== null);
    const measured = curves.filter((curve) => !curve.published).flatMap(inside);
    const values = measured.length ? measured : curves.flatMap(inside);
    const rates = values.map((point) => point.bpp), qualities = values.map((point) => point[metric]);
    const low = Math.min(...rates) / 1.08, high = Math.max(...rates) * 1.08;
    const pad = 0.03 * (Math.max(...qualities) - Math.min(...qualities)) + 0.2;
    const floor = Math.min(...qualities) - pad, ceiling = Math.max(...qualities) + pad;
    const x = (rate) => left + ((width - left - right) * Math.log(rate / low)) / Math.log(high / low);
    const y = (quality) => height - bottom - ((height - top - bottom) * (quality - floor)) / (ceiling - floor);
    drawing.setAttribute("width", width);
    drawing.setAttribute("height", height);
    const clip = svg("clipPath", { id: "panel" }, svg("rect", { x: left, y: top, width: width - left, height: height - top - bottom }));
    const parts = [clip];
    if (!values.length) parts.push(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "not measured"));
    for (const rate of values.length ? rateTicks(low, high, width < 520) : []) {
      parts.push(svg("line", { class: "grid", x1: x(rate), x2: x(rate), y1: top, y2: height - bottom }));
      parts.push(svg("text", { x: x(rate), y: height - bottom + 16, "text-anchor": "middle" }, String(rate)));
    }
    for (const quality of values.length ? ticks(floor, ceiling, height / 34) : []) {
      parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(quality), y2: y(quality) }));
      parts.push(svg("text", { x: left - 6, y: y(quality) + 4, "text-anchor": "end" }, String(quality)));
    }
    const rateTitle = width < 520 ? "bits per pixel, whole file" : "rate, bits per pixel of the whole file, logarithmic";
    if (values.length) parts.push(svg("text", { class: "title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, rateTitle));
    parts.push(svg("text", { class: "title", x: left, y: 14 }, METRICS[metric].axis));
    places = new Map();
    for (const curve of [...curves].reverse()) {
      if (!shown.has(curve)) continue;
      const points = curve.points
        .filter((point) => point[metric] !== null)
        .map((point) => ({ x: x(point.bpp), y: y(point[metric]), point }))
        .sort((one, other) => one.x - other.x);
      const reachable = points.filter((place) => left <= place.x && place.x <= width - right && top <= place.y && place.y <= height - bottom);
      places.set(curve, reachable);
      // The line leaves out points that another one beats in both rate and quality, as BD-rates do.
      let best = Infinity;
      const front = points.filter((place) => place.y < best && ((best = place.y), true));
      const group = svg("g", { class: `curve ${curve.group}`, style: `color:${curve.colour}`, "data-name": curve.name });
      const path = front.map((place) => `${place.x.toFixed(1)},${place.y.toFixed(1)}`).join(" ");
      group.append(svg("polyline", { class: "line", points: path, "stroke-dasharray": curve.dash, "clip-path": "url(#panel)" }));
      for (const place of reachable) {
        const at = `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`;
        group.append(svg("path", { class: curve.marker ? "mark" : "dot", d: curve.marker || DOT, transform: at }));
      }
      parts.push(group);
    }
    parts.push(svg("circle", { class: "ring", r: 8 }));
    drawing.replaceChildren(...parts);
    if (active && !(places.get(active.curve) || [])[active.at]) active = null;
    read(active);
  }

  function read(next) {
    active = next;
    const ring = drawing.querySelector(".ring");
    tip.hidden = !active;
    if (!ring) return;
    ring.style.display = active ? "" : "none";
    if (!active) return;
    const place = places.get(active.curve)[active.at];
    ring.setAttribute("cx", place.x);
    ring.setAttribute("cy", place.y);
    tip.replaceChildren(html("b", {}, active.curve.name), ...told(active.curve, place.point).map((line) => html("div", {}, line)));
    const box = tip.getBoundingClientRect();
    const beside = place.x + 14 + box.width < canvas.clientWidth ? place.x + 14 : place.x - 14 - box.width;
    tip.style.left = `${clamp(beside, 0, Math.max(canvas.clientWidth - box.width, 0))}px`;
    tip.style.top = `${clamp(place.y - box.height - 10, 0, drawing.clientHeight)}px`;
  }

  function nearest(event) {
    const frame = drawing.getBoundingClientRect();
    let found = null, least = NEAR;
    for (const [curve, points] of places) {
      points.forEach((place, at) => {
        const distance = Math.hypot(place.x + frame.left - event.clientX, place.y + frame.top - event.clientY);
        if (distance <= least) [least, found] = [distance, { curve, at }];
      });
    }
    return found;
  }

  drawing.addEventListener("pointermove", (event) => read(nearest(event)));
  drawing.addEventListener("pointerdown", (event) => read(nearest(event)));
  drawing.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && read(null));
  drawing.addEventListener("focus", () => {
    if (active || !drawing.matches(":focus-visible")) return;
    const first = curves.find((curve) => (places.get(curve) || []).length);
    if (first) read({ curve: first, at: 0 });
  });
  drawing.addEventListener("blur", () => read(null));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const order = curves.filter((curve) => (places.get(curve) || []).length);
    if (event.key === "Escape") read(null);
    if (!step || event.ctrlKey || event.metaKey || event.altKey || !order.length) return;
    event.preventDefault();
    if (!active) return void read({ curve: order[0], at: 0 });
    const here = places.get(active.curve)[active.at];
    const curve = order[(order.indexOf(active.curve) + step[1] + order.length) % order.length];
    const points = places.get(curve);
    // On another curve, the reading goes on at the nearest rate.
    const distances = points.map((place) => Math.abs(place.x - here.x));
    const at = step[1] ? distances.indexOf(Math.min(...distances)) : clamp(active.at + step[0], 0, points.length - 1);
    read({ curve, at });
  });

  const legend = curves.map((curve) => {
    const button = html("button", { type: "button", "aria-pressed": "true" }, sample(curve), html("span", {}, curve.name));
    button.addEventListener("click", () => {
      if (!shown.delete(curve)) shown.add(curve);
      button.setAttribute("aria-pressed", String(shown.has(curve)));
      draw();
    });
    const emphasise = (on) => {
      const own = [...drawing.querySelectorAll(".curve")].find((group) => group.dataset.name === curve.name);
      drawing.classList.toggle("reading", on && Boolean(own));
      if (own) own.classList.toggle("read", on);
    };
    for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => emphasise(true));
    for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => emphasise(false));
    return html("li", {}, button);
  });
  new ResizeObserver(draw).observe(canvas);
  return {
    element: html("div", { class: "figure" }, canvas, html("ul", { class: "legend", "aria-label": "Curves, shown or hidden" }, legend)),
    metric(next) {
      metric = next;
      draw();
    },
  };
}
