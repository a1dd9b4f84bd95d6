/** Small helpers. Whatever comes from data goes through textContent: nothing is ever parsed as HTML. */
export function byId<T extends Element = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no #${id}`);
  return found as unknown as T;
}

/** Sets text only when it has changed, so that nothing is laid out anew for nothing. */
export function say(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Makes the children of `parent` be those of `keys`, in that order; elements of known keys stay what they are. */
export function keyed<T extends HTMLElement>(parent: Element, keys: string[], create: (key: string) => T): T[] {
  const held = new Map<string, T>();
  for (const child of parent.children) held.set((child as HTMLElement).dataset["key"] ?? "", child as T);
  const wanted = keys.map((key) => {
    const element = held.get(key) ?? create(key);
    element.dataset["key"] = key;
    held.delete(key);
    return element;
  });
  for (const gone of held.values()) gone.remove();
  wanted.forEach((element, at) => {
    if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
  });
  return wanted;
}

/** A row of buttons of which one is chosen; arrow keys move, as in any radio group. */
export function choice(box: HTMLElement, options: { value: string; title: string }[], chosen: string, onChoose: (value: string) => void): void {
  const buttons = keyed(box, options.map((one) => one.value), (value) => {
    const button = make("button", { type: "button", role: "radio" });
    button.addEventListener("click", () => onChoose(value));
    return button;
  });
  buttons.forEach((button, at) => {
    const on = options[at]!.value === chosen;
    say(button, options[at]!.title);
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
    button.onkeydown = (event) => {
      const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
      const next = buttons[(at + step + buttons.length) % buttons.length];
      if (step === 0 || next === undefined) return;
      event.preventDefault();
      next.focus();
      next.click();
    };
  });
}

export function cssColor(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
