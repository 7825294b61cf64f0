# Headers that most files include are parsed once: half of the time of a build without. -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON
# leaves this out, as the linter needs it: a file names what it uses itself.

set(weightcast_common_headers
  <algorithm> <array> <bit> <chrono> <condition_variable> <cstdint> <cstring> <filesystem> <fstream> <functional> <map> <memory>
  <mutex> <numeric> <optional> <set> <span> <sstream> <string> <string_view> <thread> <unordered_map> <utility> <variant>
  <vector> <fmt/format.h> <fmt/ranges.h> <nlohmann/json.hpp>)

# weightcast_precompiled(NAME [HEADERS <a> ...] [LINKS PkgA::lib ...] [OPTIONS -O0 ...]): the common ones and those named.
function(weightcast_precompiled name)
  cmake_parse_arguments(ARG "" "" "HEADERS;LINKS;OPTIONS" ${ARGN})
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/precompiled/${name}.cpp CONTENT "")
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/precompiled/${name}.cpp)
  target_link_libraries(${name} PRIVATE weightcast_options fmt::fmt nlohmann_json::nlohmann_json ${ARG_LINKS})
  target_compile_options(${name} PRIVATE ${ARG_OPTIONS})
  target_precompile_headers(${name} PRIVATE ${weightcast_common_headers} ${ARG_HEADERS})
endfunction()

# weightcast_precompile(NAME TARGET ...): these are compiled with those headers, and with their options, unless they have
# DISABLE_PRECOMPILE_HEADERS.
function(weightcast_precompile name)
  get_target_property(options ${name} COMPILE_OPTIONS)
  foreach(target ${ARGN})
    target_precompile_headers(${target} REUSE_FROM ${name})
    # With other definitions or options the compiler would not take them.
    target_compile_definitions(${target} PRIVATE $<TARGET_PROPERTY:fmt::fmt,INTERFACE_COMPILE_DEFINITIONS>)
    get_target_property(without ${target} DISABLE_PRECOMPILE_HEADERS)
    if(options AND NOT without)
      target_compile_options(${target} PRIVATE ${options})
    endif()
  endforeach()
endfunction()

# weightcast_use_precompiled(FOLDER NAME): every library and program of a folder and those below it. Modules are compiled
# with other options.
function(weightcast_use_precompiled folder name)
  get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target ${targets})
    get_target_property(type ${target} TYPE)
    if(type MATCHES "^(STATIC_LIBRARY|EXECUTABLE)$")
      weightcast_precompile(${name} ${target})
    endif()
  endforeach()
  get_property(folders DIRECTORY ${folder} PROPERTY SUBDIRECTORIES)
  foreach(below ${folders})
    weightcast_use_precompiled(${below} ${name})
  endforeach()
endfunction()
