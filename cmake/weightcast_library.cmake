# One library a folder. A library sees the headers of the folders it names under DEPENDS and no others: each
# folder is exposed through its own include directory, so the compiler enforces the one-way includes.

add_library(weightcast_options INTERFACE)
function(weightcast_cxx_options)
  foreach(option ${ARGN})
    target_compile_options(weightcast_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${option}>)
  endforeach()
endfunction()
weightcast_cxx_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 warns of copies inside std::string that cannot happen, overlapping or too long (its bug 105651).
  weightcast_cxx_options(-Wno-restrict -Wno-stringop-overflow)
endif()
if(WEIGHTCAST_WERROR)
  weightcast_cxx_options(-Werror)
  # Warnings of nvcc itself and of the host compiler behind it.
  target_compile_options(weightcast_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
if(WEIGHTCAST_SANITIZE)
  weightcast_cxx_options(-fsanitize=${WEIGHTCAST_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(weightcast_options INTERFACE -fsanitize=${WEIGHTCAST_SANITIZE})
  if(WEIGHTCAST_SANITIZE STREQUAL thread AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # Boost.Asio has fences, which ThreadSanitizer does not follow; what they order, its locks do, too.
    weightcast_cxx_options(-Wno-tsan)
  endif()
endif()

# weightcast_library(NAME SOURCES a.cpp ... [DEPENDS core ...] [LINKS PkgA::lib ...] [PRIVATE_LINKS ...])
# makes the target weightcast_NAME from the current folder, whose headers are included as "NAME/header.hpp".
function(weightcast_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LINKS;PRIVATE_LINKS" ${ARGN})
  set(root ${PROJECT_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${root})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${root}/${name} SYMBOLIC)
  list(TRANSFORM ARG_DEPENDS PREPEND weightcast_)
  if(ARG_SOURCES)
    add_library(weightcast_${name} STATIC ${ARG_SOURCES})
    target_include_directories(weightcast_${name} PUBLIC ${root})
    target_link_libraries(weightcast_${name} PUBLIC ${ARG_DEPENDS} ${ARG_LINKS}
                                             PRIVATE weightcast_options ${ARG_PRIVATE_LINKS})
  else()
    add_library(weightcast_${name} INTERFACE)
    target_include_directories(weightcast_${name} INTERFACE ${root})
    target_link_libraries(weightcast_${name} INTERFACE ${ARG_DEPENDS} ${ARG_LINKS})
  endif()
endfunction()
