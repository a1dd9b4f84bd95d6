import { type Cells, decodeCells, FINITE, MISSING, NEGATIVE_INFINITY, NOT_A_NUMBER, Picture, POSITIVE_INFINITY, STALE } from "./codes";
import { byId, choice, cssColor, make, say } from "./dom";
import { plural } from "./format";
import { corner, type HeatLayout, heatLayout, under } from "./heat_layout";
import { gradient, isLight, shade } from "./ramp";
import type { FleetEvent, FleetLayout, HeatChoice, HeatEvent } from "./types";

const NAMES: Record<number, string> = { [MISSING]: "not reported", [NOT_A_NUMBER]: "NaN", [NEGATIVE_INFINITY]: "−Inf", [POSITIVE_INFINITY]: "+Inf", [STALE]: "stale" };

/** From this size on, a cell has room for its number. */
const NUMBER_CELL = 58;

/** The fleet on a canvas: one cell a GPU, or one a node where there are too many GPUs to see. */
export class Heatmap {
  #canvas = byId<HTMLCanvasElement>("heat");
  #box = byId("heat-box");
  #tooltip = byId("tooltip");
  #layout: FleetLayout | null = null;
  #choices: HeatChoice[] = [];
  #now: FleetEvent | null = null;
  #metric = localStorage.getItem("heat-metric") ?? "gpu_utilization_percent";
  #fold: "worst" | "mean" = "worst";
  #picture = new Picture();
  #sent: HeatEvent | null = null;
  #cells: Cells | null = null;
  #grid: HeatLayout | null = null;
  #starts: number[] = [];
  #focus: number | null = null;
  #pointer: { x: number; y: number } | null = null;
  #legendKey = "";

  /** `onLook` is told when somebody wants to see another metric: only what is looked at is sent. */
  constructor(private readonly onLook: () => void) {
    new ResizeObserver(() => this.#draw(true)).observe(this.#box);
    this.#canvas.addEventListener("pointermove", (event) => {
      this.#pointer = { x: event.offsetX, y: event.offsetY };
      this.#showTooltip();
    });
    this.#canvas.addEventListener("pointerleave", () => this.#hideTooltip());
    this.#canvas.addEventListener("keydown", (event) => this.#onKey(event));
    this.#canvas.addEventListener("blur", () => this.#hideTooltip());
  }

  update(event: FleetEvent): void {
    const fresh = event.layout !== undefined;
    if (event.layout !== undefined) {
      this.#layout = event.layout;
      this.#starts = [0];
      for (const size of event.layout.sizes) this.#starts.push(this.#starts.at(-1)! + size);
    }
    if (event.choices !== undefined) this.#choices = event.choices;
    if (this.#layout === null || this.#layout.revision !== event.revision) return;
    this.#now = event;
    if (fresh && this.#sent?.revision !== event.revision) this.#cells = null;
    this.#controls();
    if (fresh) this.#draw(true);
  }

  /** What is looked at, by the name under which it is asked for. */
  get channel(): string {
    return `${this.#metric}:${this.#fold}`;
  }

  /** Take cells; those of another metric, or of another layout, are left out. */
  paint(event: HeatEvent): void {
    if (`${event.metric}:${event.fold}` !== this.channel || this.#layout?.revision !== event.revision) return;
    if (!this.#picture.take(event)) return;
    this.#sent = event;
    this.#cells = decodeCells(this.#picture.codes, event);
    this.#draw(false);
    if (this.#pointer !== null || this.#focus !== null) this.#showTooltip();
  }

  /** Draw again with other colours. */
  restyle(): void {
    this.#draw(false);
  }

  get #chosen(): HeatChoice | undefined {
    return this.#choices.find((one) => one.name === this.#metric) ?? this.#choices[0];
  }

  #controls(): void {
    const now = this.#now!;
    const layout = this.#layout!;
    const options = this.#choices.map((one) => ({ value: one.name, title: one.title }));
    choice(byId("heat-metric"), options, this.#chosen?.name ?? "", (value) => {
      this.#metric = value;
      localStorage.setItem("heat-metric", value);
      this.#again();
    });
    const folds = [{ value: "worst", title: "Worst" }, { value: "mean", title: "Mean" }];
    byId("heat-fold").hidden = layout.cells === "gpus";
    choice(byId("heat-fold"), folds, this.#fold, (value) => {
      this.#fold = value as "worst" | "mean";
      this.#again();
    });
    const by = layout.cells === "nodes" ? ", a cell a node" : "";
    say(byId("fleet-count"), `${plural(now.gpus, "GPU")} on ${plural(layout.nodes.length, "node")}${by}`);
    const badge = byId("simulated");
    badge.hidden = now.simulated === 0;
    say(badge, now.simulated < now.gpus ? `${plural(now.simulated, "GPU")} SIMULATED` : "SIMULATED");
    byId("heat-empty").hidden = now.gpus > 0;
    this.#legend();
  }

  #again(): void {
    this.#cells = null;
    this.#sent = null;
    this.#controls();
    this.#draw(false);
    this.onLook();
  }

  #legend(): void {
    const chosen = this.#chosen;
    if (chosen === undefined || this.#legendKey === `${chosen.name} ${chosen.high}`) return;
    this.#legendKey = `${chosen.name} ${chosen.high}`;
    const bar = make("span", { class: "ramp" });
    bar.style.background = gradient(chosen.worst_is_high);
    const ends = [chosen.low, chosen.high].map((end) => make("span", { class: "numbers" }, withUnit(end, chosen.unit)));
    const swatches = [["stale", "Stale: silent for over 10 s"], ["missing", "Not reported"], ["nan", "NaN or infinite"]].map(([kind, text]) =>
      make("span", { class: "swatch" }, make("i", { class: kind! }), text!),
    );
    byId("legend").replaceChildren(ends[0]!, bar, ends[1]!, make("span", { class: "grow" }), ...swatches);
  }

  #draw(resized: boolean): void {
    const { clientWidth: width, clientHeight: height } = this.#box;
    const ratio = window.devicePixelRatio;
    if (resized || this.#canvas.width !== Math.round(width * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = Math.round(height * ratio);
    }
    const layout = this.#layout;
    const context = this.#canvas.getContext("2d");
    if (context === null) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (layout === null || layout.nodes.length === 0 || this.#cells === null || width === 0) return;
    const perNode = layout.cells === "nodes" ? 1 : Math.max(...layout.sizes);
    this.#grid = heatLayout(width, height, layout.nodes.length, perNode);
    this.#paint(context, layout, this.#grid, this.#cells);
  }

  #paint(context: CanvasRenderingContext2D, layout: FleetLayout, grid: HeatLayout, cells: Cells): void {
    const chosen = this.#chosen!;
    // What is as it should be is quiet; the eye goes to the GPU that idles or burns.
    const [calm, glaring] = chosen.worst_is_high ? [chosen.low, chosen.high] : [chosen.high, chosen.low];
    const ink = { missing: cssColor("--cell-missing"), stale: cssColor("--cell-stale"), nan: cssColor("--page"), text: cssColor("--muted") };
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "alphabetic";
    layout.nodes.forEach((name, node) => {
      if (grid.label > 0) {
        const { x, y } = corner(grid, node, 0);
        context.fillStyle = ink.text;
        context.fillText(shortened(context, name, grid.stepX - 8), x, y - 4);
      }
      const size = layout.cells === "nodes" ? 1 : layout.sizes[node]!;
      for (let inNode = 0; inNode < size; inNode++) {
        const at = layout.cells === "nodes" ? node : this.#starts[node]! + inNode;
        const { x, y } = corner(grid, node, inNode);
        const kind = cells.kinds[at];
        if (kind === STALE) outlined(context, x, y, grid.cell, ink.stale);
        else if (kind === FINITE) {
          context.fillStyle = shade(cells.values[at]!, calm, glaring);
          context.fillRect(x, y, grid.cell, grid.cell);
          if (grid.cell >= NUMBER_CELL) {
            context.fillStyle = isLight(cells.values[at]!, calm, glaring) ? "#10151d" : "#f4f8fc";
            written(context, withUnit(cells.values[at]!, chosen.unit), x, y, grid.cell);
          }
        } else if (kind === MISSING) hatched(context, x, y, grid.cell, ink.missing);
        else crossed(context, x, y, grid.cell, ink.nan);
      }
    });
  }

  #onKey(event: KeyboardEvent): void {
    const count = this.#cells?.kinds.length ?? 0;
    const steps: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.#grid?.across ?? 1, ArrowUp: -(this.#grid?.across ?? 1) };
    const step = steps[event.key];
    if (step === undefined || count === 0) return;
    event.preventDefault();
    this.#focus = this.#focus === null ? 0 : Math.max(0, Math.min(count - 1, this.#focus + step));
    const node = this.#nodeOf(this.#focus);
    const { x, y } = corner(this.#grid!, node, this.#layout!.cells === "nodes" ? 0 : this.#focus - this.#starts[node]!);
    this.#pointer = { x: x + this.#grid!.cell / 2, y: y + this.#grid!.cell / 2 };
    this.#showTooltip();
  }

  #nodeOf(cell: number): number {
    if (this.#layout!.cells === "nodes") return cell;
    return this.#starts.findIndex((start) => start > cell) - 1;
  }

  #hideTooltip(): void {
    this.#pointer = null;
    this.#focus = null;
    this.#tooltip.hidden = true;
  }

  #showTooltip(): void {
    const found = this.#grid !== null && this.#pointer !== null ? under(this.#grid, this.#pointer.x, this.#pointer.y) : null;
    const lines = found === null ? null : this.#describe(found.node, found.inNode);
    this.#tooltip.hidden = lines === null;
    if (lines === null || this.#pointer === null) return;
    this.#tooltip.replaceChildren(...lines.map((line, at) => make(at === 0 ? "b" : "span", {}, line)));
    const box = this.#canvas.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.#tooltip;
    const [x, y] = [box.left + this.#pointer.x, box.top + this.#pointer.y];
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    const top = Math.max(4, Math.min(y - height / 2, innerHeight - height - 4));
    this.#tooltip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  }

  #describe(node: number, inNode: number): string[] | null {
    const layout = this.#layout!;
    const name = layout.nodes[node];
    const size = layout.cells === "nodes" ? 1 : layout.sizes[node];
    if (name === undefined || size === undefined || inNode >= size) return null;
    const at = layout.cells === "nodes" ? node : this.#starts[node]! + inNode;
    const chosen = this.#chosen!;
    const kind = this.#cells?.kinds[at] ?? MISSING;
    const value = kind === FINITE ? withUnit(this.#cells!.values[at]!, chosen.unit) : NAMES[kind]!;
    if (layout.cells === "nodes") return [name, `${plural(layout.sizes[node]!, "GPU")}`, `${chosen.title}, ${this.#fold}: ${value}`];
    return [`${name} · GPU ${layout.gpu![at]}`, layout.uuid![at] ?? "no UUID", `${chosen.title}: ${value}`];
  }
}

function withUnit(value: number, unit: string): string {
  return unit === "" ? `${(value * 100).toFixed(0)} %` : `${value.toFixed(0)} ${unit}`;
}

function shortened(context: CanvasRenderingContext2D, text: string, width: number): string {
  if (context.measureText(text).width <= width) return text;
  let shown = text;
  while (shown.length > 1 && context.measureText(`…${shown}`).width > width) shown = shown.slice(1);
  return `…${shown}`;
}

function written(context: CanvasRenderingContext2D, text: string, x: number, y: number, side: number): void {
  context.save();
  context.font = `600 ${Math.min(24, side / 4)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, x + side / 2, y + side / 2);
  context.restore();
}

function outlined(context: CanvasRenderingContext2D, x: number, y: number, side: number, ink: string): void {
  context.strokeStyle = ink;
  context.lineWidth = 1;
  if (side < 4) {
    context.fillStyle = ink;
    context.fillRect(x, y, side, side / 2);
    return;
  }
  context.setLineDash([2, 2]);
  context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
  context.setLineDash([]);
}

function hatched(context: CanvasRenderingContext2D, x: number, y: number, side: number, ink: string): void {
  context.save();
  context.beginPath();
  context.rect(x, y, side, side);
  context.clip();
  context.strokeStyle = ink;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = 0; at < 2 * side; at += 4) {
    context.moveTo(x + at, y);
    context.lineTo(x + at - side, y + side);
  }
  context.rect(x + 0.5, y + 0.5, side - 1, side - 1);
  context.stroke();
  context.restore();
}

function crossed(context: CanvasRenderingContext2D, x: number, y: number, side: number, ink: string): void {
  context.fillStyle = ink;
  context.fillRect(x, y, side, side);
  if (side < 6) return;
  context.strokeStyle = "#fff";
  context.lineWidth = Math.max(1, side / 12);
  const inset = side * 0.28;
  context.beginPath();
  context.moveTo(x + inset, y + inset);
  context.lineTo(x + side - inset, y + side - inset);
  context.moveTo(x + side - inset, y + inset);
  context.lineTo(x + inset, y + side - inset);
  context.stroke();
}

