import uPlot from "uplot";
import { byId, cssColor, say } from "./dom";
import { type Curve, drawn, latest } from "./curve";
import { isNonFinite, number } from "./format";
import type { Num } from "./types";

export interface Onset {
  step: number;
  tier: string;
}

const MARK = 7;
/** More dashed lines than that would be a hatching. */
const ONSETS_MAX = 24;

/** One curve: finite points as a line, non-finite ones as red marks at the top, incidents as dashed lines. */
class Chart {
  #plot: uPlot | null = null;
  #marks: { step: number; what: string }[] = [];
  #onsets: Onset[] = [];
  #logarithmic = false;
  #box: HTMLElement;

  constructor(
    id: string,
    private readonly ink: string,
  ) {
    this.#box = byId(id);
    new ResizeObserver(() => {
      const { clientWidth: width, clientHeight: height } = this.#box;
      if (width > 0 && height > 0) this.#plot?.setSize({ width, height });
    }).observe(this.#box);
  }

  show(steps: number[], numbers: Num[], onsets: Onset[], logarithmic: boolean, span: number | null): void {
    const { steps: xs, values, marks } = drawn(steps, numbers, logarithmic, span);
    this.#marks = marks;
    this.#box.classList.toggle("bare", xs.length === 0);
    if (xs.length === 0) {
      this.restyle();
      return;
    }
    this.#onsets = onsets;
    if (this.#plot === null || this.#logarithmic !== logarithmic) this.#make(logarithmic);
    this.#plot!.setData([xs, values] as uPlot.AlignedData);
  }

  restyle(): void {
    this.#plot?.destroy();
    this.#plot = null;
  }

  #make(logarithmic: boolean): void {
    this.#plot?.destroy();
    this.#logarithmic = logarithmic;
    const grid = { stroke: cssColor("--grid"), width: 1 };
    const axis: uPlot.Axis = { stroke: cssColor("--muted"), font: "12px system-ui, sans-serif", grid, ticks: grid };
    this.#plot = new uPlot(
      {
        width: Math.max(1, this.#box.clientWidth),
        height: Math.max(1, this.#box.clientHeight),
        padding: [14, 10, 0, 0],
        legend: { show: false },
        cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
        scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { distr: logarithmic ? 3 : 1 } },
        axes: [
          { ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en-US") : "")) },
          { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : trimmed(tick))) },
        ],
        series: [{}, { stroke: cssColor(this.ink), width: 2, spanGaps: false, points: { show: false } }],
        hooks: { draw: [(plot) => this.#overlay(plot)] },
      },
      [[], []],
      this.#box,
    );
  }

  #overlay(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    for (const onset of this.#onsets) {
      const x = plot.valToPos(onset.step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = cssColor(`--${onset.tier}`);
      ctx.lineWidth = 1.5 * ratio;
      ctx.setLineDash([5 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top - 12 * ratio);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.setLineDash([]);
    ctx.fillStyle = cssColor("--page");
    this.#shadeRuns(plot);
    for (const mark of this.#marks) {
      const x = plot.valToPos(mark.step, "x", true);
      const size = MARK * ratio;
      ctx.beginPath();
      ctx.moveTo(x - size / 2, bbox.top - size);
      ctx.lineTo(x + size / 2, bbox.top - size);
      ctx.lineTo(x, bbox.top);
      ctx.fill();
    }
    this.#label(plot);
    ctx.restore();
  }

  /** Where every step is non-finite, the ground says so too: seen from afar, a curve that merely ends looks finished. */
  #shadeRuns(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const values = plot.data[1]!;
    const steps = plot.data[0]!;
    const marked = new Set(this.#marks.map((mark) => mark.step));
    ctx.save();
    ctx.globalAlpha = 0.13;
    for (let at = 0; at < values.length; at++) {
      if (!marked.has(steps[at]!)) continue;
      let end = at;
      while (end + 1 < steps.length && marked.has(steps[end + 1]!)) end++;
      const [from, to] = [plot.valToPos(steps[at]!, "x", true), plot.valToPos(steps[end]!, "x", true)];
      if (end > at) ctx.fillRect(from, bbox.top, to - from, bbox.height);
      at = end;
    }
    ctx.restore();
  }

  /** The first mark is named; the others would only hide each other's names. */
  #label(plot: uPlot): void {
    const first = this.#marks[0];
    if (first === undefined) return;
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const text = `${number(first.what as Num)} from step ${first.step.toLocaleString("en-US")}`;
    ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    const width = ctx.measureText(text).width;
    const x = plot.valToPos(first.step, "x", true);
    const fits = x - width - 10 * ratio > bbox.left;
    ctx.textAlign = fits ? "right" : "left";
    ctx.textBaseline = "top";
    ctx.fillText(text, x + (fits ? -8 : 8) * ratio, bbox.top + 4 * ratio);
  }
}

function trimmed(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(0).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** The two curves of the job that is looked at. */
export class Curves {
  #loss = new Chart("loss-plot", "--loss");
  #norm = new Chart("norm-plot", "--norm");

  show(curve: Curve | null, onsets: Onset[], logarithmic: boolean, span: number | null): void {
    const points = curve?.points ?? { step: [], loss: [], grad_norm: [] };
    const near = onsets.slice(0, ONSETS_MAX);
    this.#loss.show(points.step, points.loss, near, logarithmic, span);
    this.#norm.show(points.step, points.grad_norm, near, logarithmic, span);
    now("loss-now", latest(points.loss));
    now("norm-now", latest(points.grad_norm));
  }

  restyle(): void {
    this.#loss.restyle();
    this.#norm.restyle();
  }
}

function now(id: string, value: Num): void {
  const element = byId(id);
  say(element, number(value));
  element.classList.toggle("bad", isNonFinite(value));
}
