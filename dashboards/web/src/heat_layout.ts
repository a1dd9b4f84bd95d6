/** Where the cells of the heatmap are: nodes as blocks of GPUs, as large as they fit. */
export interface HeatLayout {
  /** Side of a cell and the room between two, in CSS pixels. */
  cell: number;
  gap: number;
  /** Cells of a node's block beside and below each other. */
  across: number;
  down: number;
  /** Blocks beside each other, and the distance from one to the next. */
  columns: number;
  stepX: number;
  stepY: number;
  /** Height of the node's name above its block; 0 where there is no room for names. */
  label: number;
  left: number;
  top: number;
}

const CELL_MAX = 128;
const LABEL = 15;
const LABEL_ROOM = 62;

/** The layout of `nodes` blocks of `perNode` cells in a box, with the largest cells. */
export function heatLayout(width: number, height: number, nodes: number, perNode: number): HeatLayout {
  let best: HeatLayout | undefined;
  for (const across of shapes(perNode)) {
    for (let columns = 1; columns <= nodes; columns++) {
      const found = fit(width, height, nodes, across, Math.ceil(perNode / across), columns);
      if (best === undefined || found.cell > best.cell * 1.02) best = found;
      // Beyond this many columns the width alone makes the cells smaller than the best ones.
      if ((width / (columns * across)) < best.cell) break;
    }
  }
  return best ?? fit(width, height, 1, 1, 1, 1);
}

function shapes(perNode: number): number[] {
  const widths = [perNode, Math.ceil(perNode / 2), Math.ceil(perNode / 4), Math.ceil(Math.sqrt(perNode))];
  return [...new Set(widths.filter((width) => width >= 1))];
}

function fit(width: number, height: number, nodes: number, across: number, down: number, columns: number): HeatLayout {
  const rows = Math.ceil(nodes / columns);
  const alone = across * down === 1;
  for (const label of alone ? [0] : [LABEL, 0]) {
    // Between nodes lies half a cell, between GPUs a tenth; the last block needs no room behind it.
    const apart = alone ? 0.12 : 0.5;
    const byWidth = width / (columns * across * 1.1 + (columns - 1) * apart);
    const byHeight = (height - rows * label) / (rows * down * 1.1 + (rows - 1) * apart);
    const pitch = Math.max(1, Math.min(CELL_MAX, byWidth, byHeight));
    const gap = pitch >= 6 ? Math.max(1, Math.round(pitch * 0.1)) : pitch >= 3 ? 1 : 0;
    const cell = Math.max(1, pitch >= 4 ? Math.floor(pitch * 1.1 - gap) : pitch - gap);
    const between = alone ? 0 : Math.floor(pitch * apart);
    const stepX = across * (cell + gap) + between;
    const stepY = down * (cell + gap) + between + label;
    if (label > 0 && stepX < LABEL_ROOM) continue;
    const used = columns * stepX - between - gap;
    const left = Math.max(0, Math.floor((width - used) / 2));
    const top = Math.max(0, Math.floor((height - (rows * stepY - between - gap)) / 2));
    return { cell, gap, across, down, columns, stepX, stepY, label, left, top };
  }
  throw new Error("unreachable: a layout without labels always fits");
}

/** The upper left corner of a cell. */
export function corner(layout: HeatLayout, node: number, inNode: number): { x: number; y: number } {
  const pitch = layout.cell + layout.gap;
  return {
    x: layout.left + (node % layout.columns) * layout.stepX + (inNode % layout.across) * pitch,
    y:
      layout.top +
      Math.floor(node / layout.columns) * layout.stepY +
      layout.label +
      Math.floor(inNode / layout.across) * pitch,
  };
}

/** Which node and which of its cells lie under a point; null between blocks and beyond them. */
export function under(layout: HeatLayout, x: number, y: number): { node: number; inNode: number } | null {
  const [inX, inY] = [x - layout.left, y - layout.top];
  if (inX < 0 || inY < 0) return null;
  const column = Math.floor(inX / layout.stepX);
  if (column >= layout.columns) return null;
  const pitch = layout.cell + layout.gap;
  const across = Math.floor((inX - column * layout.stepX) / pitch);
  const row = Math.floor(inY / layout.stepY);
  const below = inY - row * layout.stepY - layout.label;
  const down = Math.floor(below / pitch);
  if (across >= layout.across || below < 0 || down >= layout.down) return null;
  return { node: row * layout.columns + column, inNode: down * layout.across + across };
}
