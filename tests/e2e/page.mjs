// Drives the live page in a real Chromium and prints what it saw as one JSON object; screenshots go beside it.
// Usage: node page.mjs OPTIONS-AS-JSON, with {url, chromium, profile, playwright, screenshots, incident}.
// It talks to the test over its standard streams: it prints "ready" lines and waits for a line before it goes on.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const options = JSON.parse(process.argv[2]);
const { chromium } = (await import(pathToFileURL(options.playwright).href)).default;
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const seen = { console: [], shift: {} };

const context = await chromium.launchPersistentContext(options.profile, {
  executablePath: options.chromium,
  headless: true,
  viewport: { width: 1920, height: 1080 },
  colorScheme: "dark",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

async function open(colorScheme, width, height) {
  const page = await context.newPage();
  page.on("console", (message) => {
    // The one warning that is meant for this script: it reads the canvas back.
    if (message.text().includes("willReadFrequently")) return;
    if (["error", "warning"].includes(message.type())) seen.console.push(message.text());
  });
  page.on("pageerror", (error) => seen.console.push(error.message));
  await page.emulateMedia({ colorScheme });
  await page.setViewportSize({ width, height });
  await page.addInitScript(() => {
    globalThis.shift = 0;
    globalThis.bornAt = Math.random();
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) globalThis.shift += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(options.url);
  return page;
}

async function told(what) {
  console.log(JSON.stringify(what));
  await lines.next();
}

const text = (page, selector) => page.locator(selector).first().textContent();

/** How many different colours the heatmap has, and a fingerprint of a canvas. */
const painted = (page, selector) =>
  page.evaluate((of) => {
    const canvas = document.querySelector(of);
    const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    const colours = new Set(pixels);
    let mark = 0;
    for (const pixel of pixels) mark = (Math.imul(mark, 31) + pixel) | 0;
    return { colours: colours.size, mark };
  }, selector);

const page = await open("dark", 1920, 1080);
await page.waitForFunction(() => document.documentElement.dataset.link === "live");
await page.waitForFunction((gpus) => document.querySelector("#tile-gpus b").textContent === gpus, options.gpus);
await page.waitForFunction(() => document.querySelector("#state").dataset.level === "healthy");
seen.calm = { headline: await text(page, "#state-headline"), simulated: await page.locator("#simulated").isVisible() };
await page.waitForFunction(() => document.querySelector("#loss-plot canvas") !== null);
seen.heat = await painted(page, "#heat");
seen.lossBefore = await painted(page, "#loss-plot canvas");
seen.stepBefore = await text(page, "#job-line");
seen.born = await page.evaluate(() => globalThis.bornAt);
await page.screenshot({ path: `${options.screenshots}/page-healthy-dark.png` });
await told({ at: "healthy" });

await page.waitForFunction((before) => document.querySelector("#job-line").textContent !== before, seen.stepBefore);
await page.waitForFunction(() => document.querySelector("#norm-now").textContent === "NaN");
seen.lossAfter = await painted(page, "#loss-plot canvas");
await told({ at: "moved" });

await page.waitForSelector(`#incidents .card[data-tier="page"][data-status="firing"]`);
seen.headline = await text(page, "#state-headline");
seen.card = await text(page, "#incidents .card");
seen.injected = await page.evaluate(() => document.querySelectorAll("#incidents img, #incidents script").length);
seen.costBefore = await text(page, "#tile-cost b");
await page.waitForFunction((before) => document.querySelector("#tile-cost b").textContent !== before, seen.costBefore);
await page.screenshot({ path: `${options.screenshots}/page-incident-dark.png` });

await page.hover("#heat", { position: { x: 60, y: 60 } });
await page.locator("#heat").focus();
await page.keyboard.press("ArrowRight");
seen.tooltip = await page.locator("#tooltip").allInnerTexts();
await page.locator("#heat").blur();
await page.getByRole("radio", { name: "Temperature" }).click();
seen.legend = await text(page, "#legend");
await page.getByRole("radio", { name: "Log" }).click();
await page.waitForTimeout(300);
seen.bornAfter = await page.evaluate(() => globalThis.bornAt);
seen.shift.desktop = await page.evaluate(() => globalThis.shift);

await page.locator("#incidents a").first().click();
await page.waitForSelector("#drawer[open]");
seen.drawer = await page.locator("#drawer").innerText();
seen.hash = new URL(page.url()).hash;
await page.screenshot({ path: `${options.screenshots}/page-drawer-dark.png` });
await page.keyboard.press("Escape");
await page.waitForSelector("#drawer:not([open])", { state: "attached" });

for (const [name, scheme, width, height] of [
  ["light", "light", 1920, 1080],
  ["small", "dark", 1280, 800],
  ["phone", "light", 390, 844],
]) {
  const other = await open(scheme, width, height);
  await other.waitForSelector(`#incidents .card`);
  await other.waitForFunction(() => document.querySelector("#norm-now").textContent === "NaN");
  seen[name] = {
    ground: await other.evaluate(() => getComputedStyle(document.body).backgroundColor),
    sideways: await other.evaluate(() => document.documentElement.scrollWidth - innerWidth),
  };
  await other.waitForTimeout(1200);
  seen.shift[name] = await other.evaluate(() => globalThis.shift);
  await other.screenshot({ path: `${options.screenshots}/page-${name}.png`, fullPage: name === "phone" });
  await other.close();
}

seen.expected = seen.console.length;
await told({ at: "looked" });
await page.waitForFunction(() => ["stale", "waiting"].includes(document.documentElement.dataset.link));
await page.waitForFunction(() => document.querySelector("#state-headline").textContent === "OFFLINE");
await page.screenshot({ path: `${options.screenshots}/page-stale-dark.png` });
seen.console = seen.console.slice(0, seen.expected);
console.log(JSON.stringify({ at: "end", seen }));
await context.close();
process.exit(0);
