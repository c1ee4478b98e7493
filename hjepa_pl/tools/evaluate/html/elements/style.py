"""The style sheet of the pages, and their colors: Okabe and Ito's, which color-blind readers can tell apart."""

OURS, BASELINE = "#0072b2", "#8a929b"
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#222222")

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --wash: #f6f8fa; --ours: #0072b2;
  --base: #8a929b; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 22px; line-height: 1.25; margin: 48px 0 4px; padding-top: 14px; border-top: 3px solid var(--ink);
  overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.note { color: var(--soft); font-size: 14px; line-height: 1.45; }
nav { margin: 10px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 15px; }
nav a, a { color: #00578a; }
.cards { columns: 3 350px; column-gap: 18px; margin: 18px 0; }
.cards.two { columns: 2 480px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; margin: 0 0 18px; min-width: 0;
  break-inside: avoid; background: #fff; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
tbody th { white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 400; }
.ours { font-weight: 700; }
td.text { text-align: left; white-space: normal; min-width: 16ch; max-width: 80ch; overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: minmax(4em, max-content) 1fr max-content; gap: 5px 10px;
  align-items: center; font-size: 14px; line-height: 1.3; font-variant-numeric: tabular-nums; margin: 8px 0; }
.bars > .name { max-width: 15em; overflow-wrap: anywhere; }
.bars > .number { text-align: right; }
.track { position: relative; height: 16px; background: var(--wash); border-left: 1px solid var(--ink); }
.fill { position: absolute; left: 0; top: 2px; bottom: 2px; background: var(--base); }
.track.ours .fill { background: var(--ours); }
.whisker { position: absolute; top: 7px; height: 2px; background: #000; }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -3px; width: 1.5px; height: 8px;
  background: #000; }
.whisker::before { left: 0; } .whisker::after { right: 0; }
.mark { position: absolute; top: 3px; width: 10px; height: 10px; margin-left: -5px; background: #fff;
  border: 2px solid #000; }
.mark.m0 { border-radius: 50%; } .mark.m1 { transform: rotate(45deg) scale(.85); }
.legend { display: flex; flex-wrap: wrap; gap: 3px 14px; font-size: 13.5px; line-height: 1.4; margin: 6px 0; }
.legend > span { display: inline-flex; align-items: center; gap: 6px; max-width: 100%; overflow-wrap: anywhere; }
.legend .key.one { width: 19px; height: 19px; }
.legend .mark { position: static; margin: 0; flex: none; }
.swatch { width: 16px; height: 10px; flex: none; background: var(--ours); }
svg { display: block; max-width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--ink); font-family: inherit; }
.chart { width: 100%; max-width: 520px; }
.key { width: 26px; height: 14px; flex: none; }
.summary { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px 32px; align-items: center;
  padding: 14px 0; border-bottom: 1px solid var(--line); }
.summary p { margin: 0; }
.matrix th, .matrix td { padding: 0; white-space: nowrap; border: 1px solid #fff; font-size: 12px; }
.matrix td { min-width: 25px; height: 25px; padding: 0 2px; text-align: center; vertical-align: middle; }
.matrix td.hit { border: 2px solid #000; }
.matrix thead th { border-bottom: 0; font-weight: 400; height: 1px; vertical-align: bottom; text-align: center; }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); padding: 4px 0; }
.matrix tbody th { padding: 0 8px 0 0; vertical-align: middle; text-align: left; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(78px, 1fr)); gap: 12px 8px; margin: 10px 0; }
.maps > div { min-width: 0; font-size: 12.5px; line-height: 1.3; text-align: center; }
.maps > .head { text-align: left; }
.picture { display: block; width: 100%; object-fit: contain; background: var(--wash); margin-bottom: 3px; }
.pixels { image-rendering: pixelated; }
.queries { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)); gap: 18px 30px;
  margin-top: 10px; }
.query { min-width: 0; }
.query > p { margin: 0 0 4px; font-size: 14px; }
.strip { display: grid; grid-template-columns: repeat(9, minmax(0, 1fr)); gap: 6px; font-size: 12px;
  line-height: 1.25; }
.strip > div { min-width: 0; text-align: center; }
.strip .what { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.strip .picture { border: 3px solid transparent; margin: 0; }
.strip .hit .picture { border-color: #0072b2; } .strip .miss .picture { border: 3px dashed #d55e00; }
code { font-size: 13.5px; overflow-wrap: anywhere; }
@media (max-width: 760px) {
  main { padding: 18px 12px 40px; }
  .summary { grid-template-columns: minmax(0, 1fr); }
  .strip { grid-template-columns: repeat(5, minmax(0, 1fr)); }
  .strip .asked { grid-row: span 2; }
  .bars > .name { max-width: 9em; }
  .card { padding: 12px; }
  table { font-size: 13px; }
  th, td { padding: 4px 5px; }
  thead th { white-space: normal; }
  th:first-child { min-width: 7em; }
  .matrix thead th { white-space: nowrap; }
  .matrix th:first-child { min-width: 0; }
}
"""
