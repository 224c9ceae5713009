// the visible text whose contrast with what is painted behind it is below 4.5 (3 for large letters), by WCAG's formula;
// elements that reach over the window's right or left edge although no box of theirs scrolls; pictures; colours; sizes
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const parse = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = rgb => {
  const [r, g, b] = rgb.map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(view.getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
const pale = [], texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
let seen = 0;
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, style = view.getComputedStyle(element);
  if (!texts.currentNode.textContent.trim() || !element.getClientRects().length) continue;
  seen += 1;
  const [a, b] = [light(parse(style.color).slice(0, 3)), light(behind(element))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) pale.push(texts.currentNode.textContent.trim().slice(0, 40) + ' ' + ratio.toFixed(2));
}
const overflowing = [...page.body.querySelectorAll('*')].filter(e => {
  const box = e.getBoundingClientRect();
  if (e.closest('.skip') || !box.width || (box.right <= view.innerWidth + .5 && box.left >= -.5)) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (view.getComputedStyle(p).overflowX === 'auto') return false;
  return true;
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40));
return {
  pale, seen, overflowing, width: view.innerWidth, whole: page.documentElement.scrollWidth,
  images: [...page.images].map(i => i.naturalWidth > 0 && i.complete && i.alt.length > 0),
  dark: view.getComputedStyle(page.body).backgroundColor.match(/\d+/g).every(v => v < 60),
  cards: [...page.querySelectorAll('.card')].map(card => view.getComputedStyle(card).backgroundColor),
  tables: page.querySelectorAll('table').length,
  boxes: [...page.querySelectorAll('.scroll:has(table)')].map(b => [b.scrollWidth, b.clientWidth]),
};
