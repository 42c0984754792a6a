// Optional enhancements: live progress, local times, highlighting a field while a file is dragged over it.

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

for (const section of document.querySelectorAll("[data-events]")) follow(section);

for (const time of document.querySelectorAll("time[datetime]")) {
  time.title = time.textContent;
  time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

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
