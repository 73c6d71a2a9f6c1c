"use strict";

// Tables: the title of each column becomes a button that sorts by it. A cell with `data-value` is
// sorted as that number, others as text; undefined values are last in both directions.
function valueOf(row, column) {
  const cell = row.cells[column];
  if (!("value" in cell.dataset)) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(table, header) {
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [valueOf(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * compare(a, b);
  });
  body.append(...rows.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, header));
    header.append(button);
  }
}

// Images: those remain that have an error of the chosen type in the chosen category. Their
// `data-errors` are words such as "3:class", with the number of the category.
function filterImages() {
  const category = document.getElementById("filter-category").value;
  const error = document.getElementById("filter-error").value;
  const images = document.querySelectorAll("article.image");
  let count = 0;
  for (const image of images) {
    const words = image.dataset.errors.split(" ").map((word) => word.split(":"));
    const visible = words.some(
      ([number, type]) => (category === "" || number === category) && (error === "" || type === error),
    );
    image.hidden = !visible && (category !== "" || error !== "");
    count += !image.hidden;
  }
  document.getElementById("filter-count").value = `${count} of ${images.length} images`;
}

const filter = document.getElementById("filter");
if (filter) {
  filter.addEventListener("change", filterImages);
  filter.addEventListener("submit", (event) => event.preventDefault());
  filterImages(); // the browser may have restored a choice
}

// Paper has no buttons: everything is printed.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
