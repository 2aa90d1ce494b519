"""Charts as inline SVG and pages around them: text out, no runtime and no network needed. Colours are in page.css."""
