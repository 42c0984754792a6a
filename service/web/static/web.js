// What pages are better with, and work without: live progress, local times, a sign while a file hangs over its field.

function follow(section) {
  const phase = section.querySelector("#phase");
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
  };
  source.addEventListener("state", (event) => {
    const analysis = JSON.parse(event.data);
    if (analysis.state !== section.dataset.state) {
      // In another state the page has other things on it; one that has ended says so by its own event.
      if (analysis.links.cancel) again();
      return;
    }
    // Another attempt begins anew.
    if (!analysis.progress) bar.removeAttribute("value");
    show(analysis.progress);
  });
  source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", again);
  // Left open, the stream would count as one more until the browser lets the page go.
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

// A form that is under way is not sent twice.
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
