// Optional enhancements: live progress, a list that stays current, local times, plots as PNG, highlighting a field while a
// file is dragged over it.

// An end of an interval with as many digits as show its width, rounded outwards.
function end(value, width, up) {
  const size = Math.abs(value) > 0 ? Math.floor(Math.log10(Math.abs(value))) : 0;
  const digits = Math.min(17, Math.max(6, width > 0 ? size - Math.floor(Math.log10(width)) + 2 : 17));
  const near = Number(value.toPrecision(digits));
  if (up ? near >= value : near <= value) return String(near);
  return String(Number((value + (up ? 1 : -1) * 10 ** (size - digits + 1)).toPrecision(digits)));
}

// A positive quantity in the largest unit of which it is at least one, or else in the last.
function inUnits(value, units) {
  const [unit, size] = units.find(([, size]) => value >= size) ?? units[units.length - 1];
  const count = value / size;
  return `${count < 100 ? Number(count.toPrecision(3)) : Math.round(count).toLocaleString("en")} ${unit}`;
}

const TIMES = [["h", 3600], ["min", 60], ["s", 1], ["ms", 0.001]];
const SIZES = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];

function follow(section) {
  const phase = section.querySelector("#phase");
  const known = section.querySelector("#known");
  const expected = section.querySelector("#expected");
  const bar = section.querySelector("#progress");
  const source = new EventSource(section.dataset.events);

  const again = () => {
    source.close();
    location.reload();
  };
  const show = (progress) => {
    if (!progress) return;
    bar.value = progress.fraction;
    const share = Math.round(100 * progress.fraction);
    phase.textContent = `${progress.phase}, ${share} %, ${progress.hessian_vector_products} Hessian-vector products`;
    known.hidden = !progress.enclosure;
    if (!progress.enclosure) return;
    const { lower, upper } = progress.enclosure.lambda_max;
    const ends = [end(lower, upper - lower, false), end(upper, upper - lower, true)].join(", ");
    known.textContent = `So far: λ_max in [${ends}] after ${progress.enclosure.hessian_vector_products} products`;
  };
  const expect = (estimate) => {
    expected.hidden = !estimate;
    if (!estimate) return;
    expected.textContent = `Expected: about ${inUnits(estimate.seconds, TIMES)} and ${inUnits(estimate.bytes, SIZES)}`;
  };
  source.addEventListener("state", (event) => {
    const analysis = JSON.parse(event.data);
    if (analysis.state !== section.dataset.state) {
      // Another state needs another page; the end of the analysis has its own event.
      if (analysis.links.cancel) again();
      return;
    }
    // A new attempt starts from zero.
    if (!analysis.progress) bar.removeAttribute("value");
    show(analysis.progress);
    expect(analysis.estimate);
  });
  source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", again);
  // Otherwise the stream would stay open, and be counted, until the browser discards the page.
  addEventListener("pagehide", () => source.close());
}

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}

// Two analyses can be compared, no other number of them.
function limitTicks(list) {
  const button = list.querySelector("form.pick button");
  if (button) button.disabled = list.querySelectorAll("[name=pick]:checked").length !== 2;
}

// What an element of the list is, whichever refresh made it.
const keyOf = (element) => element.value || element.getAttribute("href") || element.className || element.textContent;

// Puts a fresh list in the place of the old one; ticks, the focus and the place stay.
function replaceList(list, fresh) {
  const ticked = new Set([...list.querySelectorAll("[name=pick]:checked")].map((box) => box.value));
  const focused = list.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  const place = list.querySelector(".scroll")?.scrollLeft ?? 0;
  list.replaceChildren(...fresh.childNodes);
  localise(list);
  for (const box of list.querySelectorAll("[name=pick]")) box.checked = ticked.has(box.value);
  const scroll = list.querySelector(".scroll");
  if (scroll) scroll.scrollLeft = place;
  if (focused) [...list.querySelectorAll("a, input, button, .scroll")].find((each) => keyOf(each) === focused)?.focus();
  limitTicks(list);
}

// The list asks for itself again as long as the page is visible.
function refresh(list) {
  const wait = Math.max(5, Number(list.dataset.refresh)) * 1000;
  let last = list.innerHTML;
  let timer = null;

  const plan = () => {
    if (!document.hidden && timer === null) timer = setTimeout(ask, wait);
  };
  const ask = async () => {
    timer = null;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById(list.id);
      if (answer.ok && fresh && fresh.innerHTML !== last) {
        last = fresh.innerHTML;
        replaceList(list, fresh);
      }
    } catch {
      // The server may be away for a moment.
    }
    plan();
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    timer = null;
    plan();
  });
  list.addEventListener("change", () => limitTicks(list));
  limitTicks(list);
  plan();
}

// Saves a plot as pixels. They are made here, from the plot as a file, which has its colours in it.
async function savePixels(button) {
  const picture = new Image();
  picture.src = button.dataset.png;
  try {
    await picture.decode();
  } catch {
    button.textContent = "Failed: reload the page";
    return;
  }
  const canvas = document.createElement("canvas");
  canvas.width = 2 * picture.naturalWidth;
  canvas.height = 2 * picture.naturalHeight;
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((pixels) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(pixels);
    link.download = button.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }, "image/png");
}

for (const button of document.querySelectorAll("[data-png]")) {
  button.hidden = false;
  button.addEventListener("click", () => savePixels(button));
}

for (const section of document.querySelectorAll("[data-events]")) follow(section);
for (const list of document.querySelectorAll("[data-refresh]")) refresh(list);
localise(document);

for (const field of document.querySelectorAll(".drop")) {
  const over = (on) => () => field.classList.toggle("over", on);
  field.addEventListener("dragenter", over(true));
  for (const name of ["dragleave", "dragend", "drop"]) field.addEventListener(name, over(false));
}

// A form is not submitted twice.
for (const form of document.querySelectorAll("form.ask")) {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button.main");
    button.textContent = "Sending …";
    setTimeout(() => { button.disabled = true; });
  });
}
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

const wrong = document.querySelector("[aria-invalid=true]");
if (wrong) wrong.focus();
