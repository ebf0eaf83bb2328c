// One photograph: two of its versions under a divider, with what their files measure.

const ORIGINAL = "original";
const KEYS = [
  ["← →", "move the divider; Page Up and Page Down further; Home and End to the sides"],
  ["0 1 2 4", "fit, or zoom 1×, 2×, 4×"],
  ["Shift + arrows", "pan when zoomed; or drag the picture"],
  [", .", "smaller, larger files"],
  ["L R", "next version on the left, on the right"],
  ["X", "swap the sides"],
];

/** Share of more or fewer bytes than rdae's file, as text. */
function excess(version, size) {
  if (version.key === ORIGINAL || version.key === "rdae") return "";
  const percent = 100 * (version.bytes / size.bytes - 1);
  return `${percent < 0 ? "−" : "+"}${Math.abs(percent).toFixed(1)} %`;
}

function similarity(version, image) {
  if (version.key === ORIGINAL) return ["—", ""];
  if (version.ms_ssim === null) return [Math.min(image.width, image.height) < 161 ? "picture too small" : "—", ""];
  return [fixed(version.ms_ssim, 4), version.ms_ssim_db === null ? "" : `${fixed(version.ms_ssim_db, 2)} dB`];
}

function psnr(version) {
  if (version.key === ORIGINAL) return "—";
  return version.psnr === null ? "lossless" : `${fixed(version.psnr, 2)} dB`;
}

/** The section of one photograph; `pictures` maps names to data URLs. */
function comparison(image, pictures) {
  const original = { key: ORIGINAL, name: "Original", setting: "uncompressed", bytes: 3 * image.width * image.height, bpp: 24, picture: image.original };
  const [, , width, height] = image.window; // the part that is shown
  const all = (size) => [original, ...size.versions];
  const state = { size: image.sizes.length >> 1, zoom: "fit", divider: 50, x: 0.5, y: 0.5 };
  state.left = all(image.sizes[state.size])[1].key;
  state.right = "rdae";
  const current = () => image.sizes[state.size];
  const version = (side) => all(current()).find((one) => one.key === state[side]) || original;

  // The stage: the left picture below, the right one above it, clipped at the divider.
  const layers = { left: html("div", { class: "layer" }), right: html("div", { class: "layer" }) };
  const tags = { left: html("span", { class: "tag left" }), right: html("span", { class: "tag right" }) };
  const handle = html("div", {
    class: "handle",
    role: "slider",
    tabindex: "0",
    "aria-label": `Divider, ${image.name}`,
    "aria-orientation": "horizontal",
    "aria-valuemin": 0,
    "aria-valuemax": 100,
  });
  const frame = html("div", { class: "frame" }, layers.left, layers.right, tags.left, tags.right, handle);
  const stage = html("div", { class: "stage" }, frame);
  let view = { scale: 1, width: 0, height: 0, pannable: false };

  function place() {
    if (!stage.clientWidth) return;
    const room = { width: stage.clientWidth, height: Math.max(0.8 * window.innerHeight, 240) };
    const fit = Math.min(1, room.width / width, room.height / height);
    const scale = state.zoom === "fit" ? fit : Number(state.zoom);
    const full = { width: width * scale, height: height * scale };
    view = { scale, width: Math.min(Math.round(full.width), room.width), height: Math.min(Math.round(full.height), Math.floor(room.height)) };
    view.pannable = full.width > view.width + 1 || full.height > view.height + 1;
    frame.style.width = `${view.width}px`;
    frame.style.height = `${view.height}px`;
    frame.classList.toggle("pannable", view.pannable);
    const left = clamp(state.x * full.width - view.width / 2, 0, Math.max(full.width - view.width, 0));
    const top = clamp(state.y * full.height - view.height / 2, 0, Math.max(full.height - view.height, 0));
    state.x = (left + view.width / 2) / full.width;
    state.y = (top + view.height / 2) / full.height;
    for (const picture of frame.querySelectorAll("img")) {
      picture.style.width = `${full.width}px`;
      picture.style.height = `${full.height}px`;
      picture.style.transform = `translate(${-Math.round(left)}px, ${-Math.round(top)}px)`;
      picture.style.imageRendering = scale >= 1 ? "pixelated" : "auto";
    }
    divide(state.divider);
  }

  function divide(percent) {
    state.divider = clamp(percent, 0, 100);
    const at = (state.divider * view.width) / 100;
    layers.right.style.clipPath = `inset(0 0 0 ${at}px)`;
    handle.style.left = `${at}px`;
    tags.left.classList.toggle("hidden", at < tags.left.offsetWidth + 16);
    tags.right.classList.toggle("hidden", view.width - at < tags.right.offsetWidth + 16);
    handle.setAttribute("aria-valuenow", Math.round(state.divider));
    const [left, right] = [Math.round(state.divider), 100 - Math.round(state.divider)];
    handle.setAttribute("aria-valuetext", `${left} % ${version("left").name}, ${right} % ${version("right").name}`);
  }

  // A picture takes the old one's place when it is decoded, so that nothing flickers.
  async function picture(side) {
    const { name, picture: url } = version(side);
    if (layers[side].dataset.wanted === url) return;
    layers[side].dataset.wanted = url;
    const next = html("img", { src: pictures[url], alt: `${image.name}, ${name}`, draggable: "false" });
    await next.decode().catch(() => {});
    if (layers[side].dataset.wanted !== url) return;
    layers[side].replaceChildren(next);
    layers[side].dataset.shown = url;
    place();
  }

  // The captions, which choose what is shown as well.
  const captions = {}, selects = {}, facts = {};
  for (const side of ["left", "right"]) {
    selects[side] = html("select", { "aria-label": `${side === "left" ? "Left" : "Right"} picture of ${image.name}` });
    selects[side].addEventListener("change", () => {
      state[side] = selects[side].value;
      show();
    });
    facts[side] = html("dl");
    captions[side] = html("div", { class: `caption ${side}` }, selects[side], facts[side]);
  }
  const everything = html("div");

  function show() {
    for (const side of ["left", "right"]) {
      const chosen = version(side);
      selects[side].replaceChildren(
        ...all(current()).map((one) => html("option", { value: one.key, selected: one === chosen }, one.name)),
      );
      tags[side].textContent = chosen.name;
      const more = excess(chosen, current());
      const [ratio, decibels] = similarity(chosen, image);
      const rows = [
        ["Setting", chosen.setting, ""],
        ["File", `${grouped(chosen.bytes)} bytes`, more],
        ["Rate", `${fixed(chosen.bpp, 4)} bpp`, ""],
        ["PSNR", psnr(chosen), ""],
        ["MS-SSIM", ratio, decibels],
      ];
      facts[side].replaceChildren(
        ...rows.map(([name, value, note]) => html("div", {}, html("dt", {}, name), html("dd", {}, value, note ? html("small", {}, note) : null))),
      );
      picture(side);
    }
    const rows = current().versions.map((one) => {
      const [ratio, decibels] = similarity(one, image);
      return [one.name, one.setting, grouped(one.bytes), excess(one, current()) || "—", fixed(one.bpp, 4), psnr(one).replace(" dB", ""), ratio, decibels.replace(" dB", "")];
    });
    const head = ["Codec", "Setting", "Bytes", "to rdae", "bpp", "PSNR, dB", "MS-SSIM", "dB"];
    everything.replaceChildren(table(head, rows, (at) => current().versions[at].key === "rdae"));
    place();
  }

  const zooms = ["fit", "1", "2", "4"].map((value) => ({ value, label: value === "fit" ? "Fit" : `${value}×` }));
  const zoom = choice("Zoom", zooms, state.zoom, (value) => setZoom(value));
  function setZoom(value) {
    state.zoom = value;
    zoom.set(value);
    place();
  }
  const options = image.sizes.map((size, at) => ({ value: String(at), label: `${fixed(size.bpp, 2)} bpp`, note: size.setting }));
  const sizes = choice("File size", options, String(state.size), (value) => setSize(Number(value)));
  function setSize(at) {
    state.size = clamp(at, 0, image.sizes.length - 1);
    sizes.set(state.size);
    show();
  }
  function swap() {
    [state.left, state.right] = [state.right, state.left];
    show();
  }
  function next(side) {
    const keys = all(current()).map((one) => one.key);
    state[side] = keys[(keys.indexOf(version(side).key) + 1) % keys.length];
    show();
  }
  function pan(across, down) {
    state.x += across / (width * view.scale);
    state.y += down / (height * view.scale);
    place();
  }

  handle.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const jump = { PageUp: state.divider + 10, PageDown: state.divider - 10, Home: 0, End: 100 }[event.key];
    const key = event.key.toLowerCase();
    if (arrow && event.shiftKey) pan(48 * arrow[0], 48 * arrow[1]);
    else if (arrow) divide(state.divider + 2 * (arrow[0] - arrow[1]));
    else if (jump !== undefined) divide(jump);
    else if (["0", "1", "2", "4"].includes(key)) setZoom(key === "0" ? "fit" : key);
    else if (key === "," || key === ".") setSize(state.size + (key === "." ? 1 : -1));
    else if (key === "l" || key === "r") next(key === "l" ? "left" : "right");
    else if (key === "x") swap();
    else return;
    event.preventDefault();
  });

  // A drag moves the divider, or pans when there is more than fits and the drag does not begin at the handle.
  let drag = null;
  const under = (event) => divide((100 * (event.clientX - frame.getBoundingClientRect().left - drag.offset)) / view.width);
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    handle.focus({ preventScroll: true });
    frame.setPointerCapture(event.pointerId);
    const held = handle.contains(event.target);
    const offset = held ? event.clientX - frame.getBoundingClientRect().left - (state.divider * view.width) / 100 : 0;
    drag = { pans: view.pannable && !held, held, offset, moved: false, x: event.clientX, y: event.clientY };
    // A finger may be about to scroll the page, which it shows by moving.
    if (!drag.pans && !held && event.pointerType === "mouse") under(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.moved = true;
    if (drag.pans) {
      pan(drag.x - event.clientX, drag.y - event.clientY);
      [drag.x, drag.y] = [event.clientX, event.clientY];
    } else under(event);
  });
  frame.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved && !drag.pans && !drag.held) under(event);
    drag = null;
  });
  frame.addEventListener("pointercancel", () => (drag = null));
  new ResizeObserver(place).observe(stage);

  const swapButton = html("button", { type: "button", class: "swap", title: "Swap the sides (X)" }, "Swap sides");
  swapButton.addEventListener("click", swap);
  const part = width < image.width || height < image.height;
  const about = `${image.width} × ${image.height}${part ? `; shown are the middle ${width} × ${height}, measured is the whole` : ""}`;
  const only = html("p", { class: "only" }, `Files of ${grouped(current().bytes)} bytes, ${fixed(current().bpp, 2)} bpp`);
  const section = html(
    "section",
    { class: "photo" },
    html("h3", {}, image.name, html("small", {}, about)),
    image.failures.map((failure) => html("p", { class: "note" }, failure)),
    html("div", { class: "bar" }, image.sizes.length > 1 ? sizes.element : only, zoom.element, swapButton),
    stage,
    html("div", { class: "captions" }, captions.left, captions.right),
    html("details", {}, html("summary", {}, "All files at this size"), everything),
  );
  show();
  return section;
}
