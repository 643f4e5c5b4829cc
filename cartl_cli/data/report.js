for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, place = head.cellIndex, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const order = (a, b) => { const [x, y] = [key(a), key(b)];
    return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y; };
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
};
