"""Style sheet of the decision page, and a Content-Security-Policy against loading of resources."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #101828; max-width: 64rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; line-height: 1.4; padding: 1rem 1.25rem; border-radius: .5rem; color: #fff; }
h1.go { background: #1a7f37; } h1.no-go { background: #b42318; }
h1, p, li, summary { overflow-wrap: anywhere; } td { overflow-wrap: break-word; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-top: 1px solid #e4e7ec; padding-top: 1.2rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem; min-width: 5rem; }
th, td { border-bottom: 1px solid #e4e7ec; }
th { background: #f9fafb; } pre { background: #f9fafb; padding: 1rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1rem 0; } svg { width: 100%; max-width: 40rem; height: auto; }
details { border: 1px solid #e4e7ec; border-radius: .5rem; padding: .4rem .9rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .15rem 0; } details[open] > summary { font-weight: 600; }
details details { font-size: .9rem; }
.quote { margin: .7rem 0; } .quote b, h4 { font-size: .85rem; color: #475467; font-weight: 600; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.quote .text { background: #f9fafb; border-radius: .4rem; padding: .5rem .7rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: .8rem 0; }
.answers section { border: 1px solid #e4e7ec; border-left: .35rem solid #98a2b3; border-radius: .4rem;
  padding: .5rem .8rem; min-width: 0; }
.answers .right { border-left-color: #1a7f37; } .answers .wrong { border-left-color: #b42318; }
.answers h4 { margin: 0; } .verdict { margin: .1rem 0 .5rem; font-size: .85rem; font-weight: 600; color: #475467; }
.right .verdict { color: #1a7f37; } .wrong .verdict { color: #b42318; }
@media print { details:not([open]) > *:not(summary) { display: block; } }
"""
