// Elements, numbers and the two controls that the parts of the page share.

function create(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Text is only ever inserted as text, so that a file name cannot become markup.
function html(name, attributes = {}, ...children) {
  return create(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return create(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function grouped(number) {
  return number.toLocaleString("en-GB");
}

function fixed(number, digits) {
  return number.toFixed(digits).replace("-", "−");
}

/** Radio buttons side by side: options are {value, label, note}; `chosen(value)` is called when another one is chosen. */
let choices = 0;
function choice(legend, options, value, chosen) {
  const name = `choice-${(choices += 1)}`;
  const inputs = options.map((option) => {
    const input = html("input", { type: "radio", name, value: option.value, checked: option.value === value });
    input.addEventListener("change", () => chosen(option.value));
    return input;
  });
  const labels = options.map((option, at) =>
    html("label", {}, inputs[at], html("span", {}, option.label, option.note ? html("small", {}, option.note) : null)),
  );
  const fieldset = html("fieldset", { class: "choice" }, html("legend", {}, legend), html("div", { class: "options" }, labels));
  return {
    element: fieldset,
    set(next) {
      for (const input of inputs) input.checked = input.value === String(next);
    },
  };
}

/** A table that scrolls by itself where it does not fit; `rows` are lists of cells, of which the first names the row. */
function table(head, rows, strong = () => false) {
  const body = rows.map((cells, at) =>
    html(
      "tr",
      { class: strong(at) ? "ours" : undefined },
      cells.map((cell, column) => {
        if (column === 0) return html("th", { scope: "row" }, cell);
        return cell instanceof Node ? cell : html("td", {}, cell);
      }),
    ),
  );
  const heading = html("tr", {}, head.map((cell) => html("th", { scope: "col" }, cell)));
  return html(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" },
    html("table", {}, html("thead", {}, heading), html("tbody", {}, body)),
  );
}
