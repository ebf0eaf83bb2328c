// The page, from the data that it carries.

const data = JSON.parse(document.getElementById("data").textContent);

function listed(names) {
  if (names.length === 1) return names[0];
  return names.length < 5 ? `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}` : `${names[0]} … ${names[names.length - 1]}`;
}

function rates(bd) {
  if (!bd.rows.length) return html("p", { class: "note" }, "Not measured.");
  const rows = bd.rows.map((row) => {
    const notes = row.cells.filter((cell) => cell !== "—");
    // One reason for the whole row is said once.
    const same = notes.length > 1 && notes.every((cell) => cell === notes[0] && !/\d/.test(cell));
    return [row.name, ...(same ? [html("td", { colspan: row.cells.length, class: "note" }, notes[0])] : row.cells)];
  });
  return table(["Bits against", ...bd.anchors], rows, (at) => bd.rows[at].ours);
}

function points(curves) {
  const value = (number, digits) => (number === null ? "—" : fixed(number, digits));
  const rows = curves.flatMap((curve) =>
    curve.points.map((point) => [
      curve.name,
      point.setting || "published",
      fixed(point.bpp, 4),
      value(point.psnr, 2),
      value(point.ms_ssim, 4),
      value(point.ms_ssim_db, 2),
    ]),
  );
  return table(["Codec", "Setting", "bpp", "PSNR, dB", "MS-SSIM", "dB"], rows);
}

function rateDistortion(rd) {
  const figure = plot(rd.curves);
  const bd = html("div");
  const caption = html("p");
  const metrics = Object.entries(METRICS).map(([value, { label }]) => ({ value, label }));
  const set = (metric) => {
    figure.metric(metric);
    bd.replaceChildren(rates(rd.bd[metric]));
    caption.textContent =
      `Bjøntegaard’s average difference in bits at equal ${METRICS[metric].label}, against the codec of each column; negative is fewer. ` +
      "† less than half of the shorter curve is common to both.";
  };
  const over = rd.images.length === 1 ? rd.images[0] : `the mean over ${rd.images.length} images (${listed(rd.images)})`;
  const published = rd.curves.some((curve) => curve.published) ? " Dashed curves are published ones." : "";
  const section = html(
    "section",
    { class: "rd" },
    html("div", { class: "heading" }, html("h2", {}, "Rate and distortion"), choice("Measured by", metrics, "psnr", set).element),
    html("p", {}, `Each point is ${over}, of real files decoded again.${published} Point at a curve, tap it, or reach it with Tab and the arrow keys to read it.`),
    rd.remarks.map((remark) => html("p", { class: "note" }, remark)),
    figure.element,
    html("details", {}, html("summary", {}, "All points"), points(rd.curves)),
    html("h2", {}, "BD-rate"),
    caption,
    bd,
  );
  set("psnr");
  return section;
}

function photographs(images) {
  const keys = KEYS.map(([key, what]) => html("div", {}, html("dt", {}, key), html("dd", {}, what)));
  return html(
    "section",
    { class: "photos" },
    html("h2", {}, images.length === 1 ? "A photograph at equal file size" : "Photographs at equal file size"),
    html(
      "p",
      {},
      "Each codec’s smallest file that is not below rdae’s, or its largest where none reaches that; the difference in bytes stands beside it. " +
        `rdae runs with ${data.models.length > 1 ? "the models" : "the model"} ${listed(data.models)}. ` +
        "The pictures are exactly what the decoders give. Drag the divider, and choose below the picture what lies on either side of it.",
    ),
    html("details", { class: "keys" }, html("summary", {}, "Keyboard"), html("p", {}, "With the divider in focus:"), html("dl", {}, keys)),
    images.map((image) => comparison(image, data.pictures)),
  );
}

document.getElementById("about").textContent =
  `rdae ${data.version}. Every rate counts every byte of a file; PSNR is over all RGB samples, MS-SSIM the mean over R, G and B.`;
document.getElementById("main").append(...(data.rd ? [rateDistortion(data.rd)] : []), photographs(data.images));

function settings(title, made) {
  const rows = Object.entries(made).map(([name, text]) => html("div", {}, html("dt", {}, name), html("dd", {}, text)));
  return [html("h4", {}, title), html("dl", {}, rows)];
}

const made = html("details", {}, html("summary", {}, "What the codecs ran with"));
if (data.rd) made.append(...settings("Curves and BD-rates", data.rd.settings));
made.append(...settings("Photographs", data.libraries));
document.getElementById("footer").append(made);
