#include "report/svg.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/text.hpp"

namespace weightcast {

namespace {

/// Fonts are those of the reader's system.
constexpr std::string_view kStyle = R"(<style>
.weightcast{font:13px system-ui,'DejaVu Sans',sans-serif}
.paper{fill:#fff}.ink,.head,.field{fill:#1c2530}.field{font-size:11px}.head{font-size:17px;font-weight:600}.faint,.small{fill:#586572}.small{font-size:11px}
.halo{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}.bar{fill:#2f6fc4}.soft{fill:#8aa4c0}.mark{fill:#c2410c}text.mark{font-weight:600}
line.grid{stroke:#d5dbe1}line.mark{stroke:#c2410c;stroke-dasharray:5 4;stroke-width:1.5}rect.grid{fill:#eef1f4}
@media(prefers-color-scheme:dark){.paper{fill:#161b21}.ink,.head,.field{fill:#e8ecf0}.faint,.small{fill:#a3afba}
.bar{fill:#4a8be0}.soft{fill:#5f7387}.mark{fill:#f07a3c}.halo{stroke:#161b21}line.grid{stroke:#38424d}line.mark{stroke:#f07a3c}rect.grid{fill:#222a32}}
</style>
)";

/// Text for XML: no control character, no byte that is no UTF-8, nothing that would end the text.
std::string escaped(std::string_view text) {
  std::string out;
  const std::string shown = printable(text);
  for (std::size_t i = 0; i < shown.size(); ++i) {
    // U+FFFE and U+FFFF are characters of UTF-8, but of no XML.
    if (shown.compare(i, 2, "\xef\xbf") == 0 && i + 2 < shown.size() &&
        (shown[i + 2] == '\xbe' || shown[i + 2] == '\xbf')) {
      out += "\\uffff";
      i += 2;
      continue;
    }
    switch (shown[i]) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += shown[i];
    }
  }
  return out;
}

std::string_view anchor_name(SvgAnchor anchor) {
  return anchor == SvgAnchor::kStart ? "start" : anchor == SvgAnchor::kMiddle ? "middle" : "end";
}

}  // namespace

Svg::Svg(std::string_view title, std::string_view description, double width, double height) {
  head_ = fmt::format(
      "{} viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" role=\"img\" "
      "aria-labelledby=\"title what\">\n<title id=\"title\">{}</title>\n<desc id=\"what\">{}</desc>\n",
      kBeginning, width, height, width, height, escaped(title), escaped(description));
  rect({0, 0, width, height}, "paper");
}

void Svg::rect(const SvgRect& at, std::string_view look, double strength, std::string_view tip) {
  const std::string opacity =
      strength < 1 ? fmt::format(" fill-opacity=\"{:.2f}\"", std::max(strength, 0.0)) : "";
  body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" class=\"{}\"{}",
                       at.x, at.y, std::max(at.width, 0.0), std::max(at.height, 0.0), look, opacity);
  body_ += tip.empty() ? "/>\n" : fmt::format("><title>{}</title></rect>\n", escaped(tip));
}

void Svg::text(double x, double y, std::string_view text, std::string_view look, SvgAnchor anchor) {
  body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\" text-anchor=\"{}\">{}</text>\n", x, y,
                       look, anchor_name(anchor), escaped(text));
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view look) {
  body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1,
                       y1, x2, y2, look);
}

std::string Svg::file() const {
  return fmt::format("{}{}{}</svg>\n", head_, kStyle, body_);
}

std::string shortened(std::string_view text, std::size_t most) {
  const auto begins_character = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80; };
  const auto characters = static_cast<std::size_t>(std::ranges::count_if(text, begins_character));
  if (characters <= most || most < 3) return std::string(text);
  // Where the character of a number begins.
  const auto place_of = [&](std::size_t number) {
    std::size_t place = 0;
    for (std::size_t seen = 0; place < text.size(); ++place) {
      if (begins_character(text[place]) && seen++ == number) break;
    }
    return place;
  };
  const std::size_t end = (most - 1) / 2;
  return fmt::format("{}…{}", text.substr(0, place_of(most - 1 - end)),
                     text.substr(place_of(characters - end)));
}

std::string unfinished_picture(std::string_view title) {
  Svg svg(title, "The command that draws this picture has not ended.", 480, 60);
  svg.text(16, 36, fmt::format("{}: not drawn yet", title), "faint");
  return svg.file();
}

}  // namespace weightcast
