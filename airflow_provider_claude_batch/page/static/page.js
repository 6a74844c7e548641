// Starts the page, and shows the view that its place asks for.
import { Detail } from "./detail.js";
import { ready } from "./dom.js";
import { List } from "./list.js";
import { onPlace, place } from "./place.js";
import { followTheme } from "./theme.js";

const root = document.getElementById("main");
let view = null;

function show(here) {
  const Kind = here.submission ? Detail : List;
  ready(false);
  if (!(view instanceof Kind)) {
    const first = !view;
    view?.close();
    root.replaceChildren();
    view = new Kind(root);
    window.scrollTo(0, 0);
    if (!first) root.focus({ preventScroll: true });
  }
  view.show(here);
}

followTheme();
onPlace(show);
show(place());
