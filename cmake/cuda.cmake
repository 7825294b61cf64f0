# WEIGHTCAST_CUDA=AUTO|ON|OFF: the GPU path is built when a CUDA compiler and NCCL are found. Sets WEIGHTCAST_HAS_CUDA.

set(WEIGHTCAST_CUDA AUTO CACHE STRING "GPU path: AUTO (when CUDA and NCCL are found), ON or OFF")
set_property(CACHE WEIGHTCAST_CUDA PROPERTY STRINGS AUTO ON OFF)
set(WEIGHTCAST_HAS_CUDA OFF)

if(NOT WEIGHTCAST_CUDA STREQUAL OFF)
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(WEIGHTCAST_NVCC nvcc PATHS /usr/local/cuda/bin)
    mark_as_advanced(WEIGHTCAST_NVCC)
    if(WEIGHTCAST_NVCC)
      set(CMAKE_CUDA_COMPILER ${WEIGHTCAST_NVCC})
    endif()
  endif()
  check_language(CUDA)
  find_path(NCCL_INCLUDE_DIR nccl.h PATHS /usr/local/cuda/include)
  find_library(NCCL_LIBRARY nccl PATHS /usr/local/cuda/lib /usr/local/cuda/lib64)
  mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
  if(CMAKE_CUDA_COMPILER AND NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
    set(WEIGHTCAST_HAS_CUDA ON)
  elseif(WEIGHTCAST_CUDA STREQUAL ON)
    message(FATAL_ERROR "WEIGHTCAST_CUDA=ON but nvcc (${CMAKE_CUDA_COMPILER}), nccl.h (${NCCL_INCLUDE_DIR}) or libnccl "
                        "(${NCCL_LIBRARY}) is missing; name them with CMAKE_CUDA_COMPILER, NCCL_INCLUDE_DIR, NCCL_LIBRARY")
  endif()
endif()

if(WEIGHTCAST_HAS_CUDA)
  # Each architecture takes minutes: those of the GPUs at hand. A machine without any builds for others, such as a
  # cluster's compute nodes: all.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90 100 120)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capabilities
                    RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT failed AND capabilities MATCHES "^[0-9]+\\.[0-9]+(\n[0-9]+\\.[0-9]+)*$")
      string(REPLACE "." "" capabilities "${capabilities}")
      string(REPLACE "\n" ";" CMAKE_CUDA_ARCHITECTURES "${capabilities}")
      list(REMOVE_DUPLICATES CMAKE_CUDA_ARCHITECTURES)
    endif()
  endif()
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc speaks C++20, later ones do.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  find_package(CUDAToolkit REQUIRED)
  add_library(NCCL::nccl UNKNOWN IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES IMPORTED_LOCATION ${NCCL_LIBRARY}
                                              INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
  message(STATUS "GPU path: CUDA ${CUDAToolkit_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}, NCCL at ${NCCL_LIBRARY}")
else()
  message(STATUS "GPU path: off")
endif()
