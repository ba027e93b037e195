/** The images of the question side by side, and the tools for the one that was last touched. */

import { byId } from "./dom.js";
import { Tile } from "./tile.js";
import { bestColumns } from "./zoom.js";

/** Sends "change" when other images are shown, and "touch" when one of them, its place or its window is another. */
export class Viewer extends EventTarget {
  /** @type {Tile[]} */
  tiles = [];
  /** @type {Tile | null} */
  active = null;
  /** @type {import("./tile.js").Tool} */
  tool = "window";

  constructor() {
    super();
    this.stage = byId("stage");
    this.grid = byId("tiles");
    this.empty = byId("empty");
    this.touched = () => this.dispatchEvent(new Event("touch"));
    new ResizeObserver(() => this.#arrange()).observe(this.stage);
  }

  get items() {
    return this.tiles.map((tile) => tile.item);
  }

  /**
   * @param {import("./image_item.js").ImageItem[]} items
   * @param {import("./image_item.js").ImageItem} [active] the one that the tools are for; by default as before
   */
  setItems(items, active = this.active?.item) {
    const kept = new Map(this.tiles.map((tile) => [tile.item, tile]));
    for (const tile of this.tiles.filter((each) => !items.includes(each.item))) {
      tile.item.removeEventListener("change", this.touched);
      tile.close();
    }
    this.tiles = items.map((item) => kept.get(item) ?? this.#newTile(item));
    this.grid.replaceChildren(...this.tiles.map((tile) => tile.element));
    this.tiles.forEach((tile, index) => tile.setNumber(index + 1, items.length));
    this.empty.hidden = items.length > 0;
    this.grid.hidden = items.length === 0;
    this.#arrange();
    this.#activate(this.tiles.find((tile) => tile.item === active) ?? this.tiles[0] ?? null);
    this.dispatchEvent(new Event("change"));
  }

  /** Put the keyboard's focus where the images are. */
  focus() {
    (this.active?.element ?? byId("choose-first")).focus();
  }

  /** @param {import("./image_item.js").ImageItem} item */
  #newTile(item) {
    item.addEventListener("change", this.touched);
    return new Tile(item, {
      tool: () => this.tool,
      activate: (tile) => this.#activate(tile),
      moved: this.touched,
      remove: (tile) => {
        this.setItems(this.items.filter((each) => each !== tile.item));
        this.focus();
      },
    });
  }

  /** @param {Tile | null} tile */
  #activate(tile) {
    this.active = tile;
    for (const each of this.tiles) each.element.classList.toggle("active", each === tile && this.tiles.length > 1);
    this.touched();
  }

  #arrange() {
    const columns = bestColumns(Math.max(1, this.tiles.length), this.stage.clientWidth, this.stage.clientHeight);
    this.grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  }
}
