// Which images are there? A report has a handful; the viewer lists a page at a time, of all or of those searched for.

let listed = { total: 0, images: [] };
let newest = null; // question for a list

/** List the images that match; take the first if asked to. */
async function list(words, first, take) {
  const asked = (newest = Symbol("asked"));
  let found;
  try {
    found = await source.images(words, first);
  } catch (error) {
    complain(error);
    return;
  }
  if (asked !== newest) return; // somebody typed on
  listed = { ...found, words, first };
  const { total, images } = listed;
  const group = root.querySelector(".images");
  group.replaceChildren(
    ...images.map((image) => {
      const button = make("button");
      button.type = "button";
      button.dataset.place = image.place;
      button.title = [image.id, ...image.told.map(toldText)].filter(Boolean).join("\n");
      const src = image.src;
      if (src && !index.served) button.append(Object.assign(make("img"), { src, alt: "" }));
      button.append(make("bdi", "", image.id));
      button.addEventListener("click", () => go({ image }));
      return button;
    }),
  );
  if (index.served) {
    const around = (step, text) => {
      const button = make("button", "step", text);
      button.type = "button";
      button.disabled = step < 0 ? first === 0 : first + images.length >= total;
      button.addEventListener("click", () => list(words, Math.max(0, first + step * index.page), true));
      return button;
    };
    const where = total ? `${first + 1}–${first + images.length} of ${total}` : "no image matches";
    group.prepend(around(-1, "Previous"));
    group.append(around(+1, "Next"), make("span", "count", where));
  }
  if (take && images.length) await go({ image: images[take === "last" ? images.length - 1 : 0] });
  else if (state.image) syncControls();
}

const AMONG_IMAGES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

/** Keys move the focus among the images, which are one tab stop together. */
function moveAmongImages(event) {
  const buttons = [...root.querySelectorAll(".images button[data-place]")];
  const at = buttons.indexOf(event.target);
  if (at < 0 || !(event.key in AMONG_IMAGES)) return;
  event.preventDefault();
  buttons[Math.min(buttons.length - 1, Math.max(0, at + AMONG_IMAGES[event.key]))].focus();
}

/** The next or the previous image, across pages of the list. */
async function turnTo(step) {
  const at = listed.images.findIndex((image) => image.place === state.image.place);
  const next = listed.images[at + step];
  if (next) return go({ image: next });
  const first = listed.first + step * index.page;
  if (!index.served || first < 0 || first >= listed.total) return undefined;
  return list(listed.words, first, step < 0 ? "last" : "first");
}
