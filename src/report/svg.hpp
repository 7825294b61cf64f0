#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weightcast {

/// Which end of a text its position is.
enum class SvgAnchor : std::uint8_t { kStart, kMiddle, kEnd };

/// A rectangle in the units of a picture (pixels at its natural size), from its upper left corner.
struct SvgRect {
  double x = 0;
  double y = 0;
  double width = 0;
  double height = 0;
};

/// A picture as SVG text: shapes and labels in a few looks that are readable on light and on dark screens,
/// nothing that would be fetched or run. Texts may come from anywhere: they are made printable and escaped.
///
/// Looks of shapes: `paper`, `grid` (faint), `bar`, `mark` (what is to be seen first), `soft`. Looks of
/// texts: `head`, `ink`, `faint`, `small`, `field` (in a shape), `mark`, `halo` (over lines); several stand
/// one behind the other.
class Svg {
 public:
  /// `title` and `description` are what a screen reader says; the title is the tooltip of the whole, too.
  Svg(std::string_view title, std::string_view description, double width, double height);

  /// `strength` from 0 to 1 is how much of its colour a shape has. `tip`, where not empty, is shown to who
  /// points at it.
  void rect(const SvgRect& at, std::string_view look, double strength = 1, std::string_view tip = "");
  /// `y` is the line that letters stand on.
  void text(double x, double y, std::string_view text, std::string_view look = "ink",
            SvgAnchor anchor = SvgAnchor::kStart);
  /// A thin line, dashed with the look `mark`.
  void line(double x1, double y1, double x2, double y2, std::string_view look = "grid");

  /// The whole file.
  std::string file() const;

  /// How files of all pictures begin.
  static constexpr std::string_view kBeginning =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"weightcast\"";

 private:
  std::string head_;
  std::string body_;
};

/// The beginning and the end of a text that has more than `most` characters.
std::string shortened(std::string_view text, std::size_t most);

/// A picture that says only that there is none yet: what a file holds until it is drawn.
std::string unfinished_picture(std::string_view title);

}  // namespace weightcast
