//! Views of logits in Python objects, without a copy: `NumPy` arrays, and CPU tensors that export `DLPack`.

use crate::error::value_error;
use bpe_llama_sampler::{Elements, LogitsView};
use numpy::npyffi::NPY_TYPES;
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::c_void;

const EXPECTED: &str = "expected float32, float16, bfloat16 or float64 in native byte order";

/// Logits, (V,) or (B, V), in memory that `_owner` keeps alive. Strides are in elements.
pub(super) struct Logits<'py> {
    _owner: Bound<'py, PyAny>,
    data: *const c_void,
    dtype: Dtype,
    pub(super) rows: usize,
    vocab_size: usize,
    row_stride: isize,
    id_stride: isize,
    /// Whether the shape is (B, V).
    pub(super) is_batch: bool,
}

#[derive(Clone, Copy)]
enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl<'py> Logits<'py> {
    /// Returns the logits of an array or tensor.
    ///
    /// # Errors
    /// `TypeError` for an unsupported type, device or dtype, `ValueError` for a wrong shape, strides or alignment.
    pub(super) fn read(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.cast::<PyUntypedArray>() {
            return Self::from_numpy(array);
        }
        Self::from_dlpack(object)
    }

    /// Returns the view that the sampler reads.
    pub(super) fn view(&self) -> PyResult<LogitsView<'_>> {
        let shape = (self.rows, self.vocab_size);
        let strides = (self.row_stride, self.id_stride);
        let (mut low, mut high) = (0isize, 0isize);
        for (count, stride) in [(shape.0, strides.0), (shape.1, strides.1)] {
            let reach = (count as isize - 1).max(0) * stride;
            low += reach.min(0);
            high += reach.max(0);
        }
        let length = if self.rows == 0 || self.vocab_size == 0 { 0 } else { (high - low + 1) as usize };
        // SAFETY: shape and strides describe one allocation, which `_owner` keeps alive; `new` checked the alignment.
        // As with every NumPy function that releases the GIL, the caller must not write to the array meanwhile.
        let elements = unsafe {
            match self.dtype {
                Dtype::F32 => Elements::F32(slice(self.data.cast::<f32>().wrapping_offset(low), length)),
                Dtype::F64 => Elements::F64(slice(self.data.cast::<f64>().wrapping_offset(low), length)),
                Dtype::F16 => Elements::F16(slice(self.data.cast::<u16>().wrapping_offset(low), length)),
                Dtype::Bf16 => Elements::Bf16(slice(self.data.cast::<u16>().wrapping_offset(low), length)),
            }
        };
        LogitsView::strided(elements, (-low) as usize, shape, strides).map_err(value_error)
    }

    fn from_numpy(array: &Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        let descr = array.dtype();
        let number = descr.num();
        let dtype = if number == NPY_TYPES::NPY_FLOAT as i32 {
            Some(Dtype::F32)
        } else if number == NPY_TYPES::NPY_DOUBLE as i32 {
            Some(Dtype::F64)
        } else if number == NPY_TYPES::NPY_HALF as i32 {
            Some(Dtype::F16)
        } else if descr.itemsize() == 2 && descr.getattr("name")?.eq("bfloat16")? {
            // The package ml_dtypes registers bfloat16, which NumPy does not have.
            Some(Dtype::Bf16)
        } else {
            None
        };
        let dtype = dtype
            .filter(|_| descr.is_native_byteorder().unwrap_or(true))
            .ok_or_else(|| PyTypeError::new_err(format!("logits have dtype {descr:?}; {EXPECTED}")))?;
        let size = dtype.size() as isize;
        let strides = array.strides();
        if strides.iter().any(|stride| stride % size != 0) {
            return Err(PyValueError::new_err(format!(
                "logits have strides {strides:?}; expected multiples of {size} bytes"
            )));
        }
        // An array of two avoids an allocation; `new` refuses more dimensions.
        let mut in_elements = [0; 2];
        for (in_elements, stride) in in_elements.iter_mut().zip(strides) {
            *in_elements = stride / size;
        }
        let strides = &in_elements[..strides.len().min(2)];
        // SAFETY: the pointer is that of a live array object.
        let data = unsafe { (*array.as_array_ptr()).fields.data }.cast::<c_void>().cast_const();
        Self::new(array.as_any().clone(), data, dtype, array.shape(), strides)
    }

    fn from_dlpack(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let wrong =
            |what: String| PyTypeError::new_err(format!("logits are {what}; expected a NumPy array or a CPU tensor"));
        let type_name = object.get_type().name()?;
        // torch exports a tensor with its negative bit, a negation still to be done, without the sign.
        let is_negated =
            object.call_method0(pyo3::intern!(py, "is_neg")).is_ok_and(|is| is.is_truthy().unwrap_or(false));
        let object = if is_negated { object.call_method0(pyo3::intern!(py, "resolve_neg"))? } else { object.clone() };
        let Ok(export) = object.getattr(pyo3::intern!(py, "__dlpack__")) else {
            return Err(wrong(format!("a {type_name}")));
        };
        // torch does not export tensors that require gradients, so they are detached first.
        let detached =
            || object.call_method0(pyo3::intern!(py, "detach"))?.call_method0(pyo3::intern!(py, "__dlpack__"));
        let capsule = export.call0().or_else(|error| {
            detached().map_err(|_| wrong(format!("a {type_name} that cannot be read ({})", error.value(py))))
        })?;
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let pointer = capsule.pointer_checked(Some(c"dltensor"))?.cast::<DlManagedTensor>();
        // SAFETY: by the protocol, a capsule of this name holds a DLManagedTensor. As the capsule is not renamed, it
        // owns the tensor until it is dropped.
        let tensor = unsafe { &pointer.as_ref().tensor };
        // kDLCPU and kDLCUDAHost: pageable and pinned host memory.
        if !matches!(tensor.device_type, 1 | 3) {
            return Err(wrong(format!("on device type {} of DLPack", tensor.device_type)));
        }
        let dtype = match (tensor.type_code, tensor.bits, tensor.lanes) {
            (2, 32, 1) => Dtype::F32,
            (2, 64, 1) => Dtype::F64,
            (2, 16, 1) => Dtype::F16,
            (4, 16, 1) => Dtype::Bf16,
            _ => {
                let dtype = object.getattr("dtype").map_or_else(|_| "?".into(), |dtype| dtype.to_string());
                return Err(PyTypeError::new_err(format!("logits have dtype {dtype}; {EXPECTED}")));
            }
        };
        let ndim = tensor.ndim as usize;
        // SAFETY: the protocol promises `ndim` elements; only strides may be null, for contiguous data.
        let shape: Vec<usize> = unsafe { slice(tensor.shape, ndim) }.iter().map(|&count| count as usize).collect();
        let strides: Vec<isize> = if tensor.strides.is_null() {
            let mut strides = vec![1isize; ndim];
            for axis in (1..ndim).rev() {
                strides[axis - 1] = strides[axis] * shape[axis] as isize;
            }
            strides
        } else {
            // SAFETY: as above.
            unsafe { slice(tensor.strides, ndim) }.iter().map(|&stride| stride as isize).collect()
        };
        let data = tensor.data.cast_const().wrapping_byte_add(tensor.byte_offset as usize);
        Self::new(capsule.into_any(), data, dtype, &shape, &strides)
    }

    fn new(
        owner: Bound<'py, PyAny>,
        data: *const c_void,
        dtype: Dtype,
        shape: &[usize],
        strides: &[isize],
    ) -> PyResult<Self> {
        let (rows, vocab_size, row_stride, id_stride, is_batch) = match (shape, strides) {
            (&[vocab_size], &[stride]) => (1, vocab_size, vocab_size as isize, stride, false),
            (&[rows, vocab_size], &[row_stride, stride]) => (rows, vocab_size, row_stride, stride, true),
            _ => {
                return Err(PyValueError::new_err(format!("logits have shape {shape:?}; expected (V,) or (B, V)")));
            }
        };
        if vocab_size == 0 {
            return Err(PyValueError::new_err(format!("logits have shape {shape:?}: row 0 is empty")));
        }
        if !(data as usize).is_multiple_of(dtype.size()) {
            return Err(PyValueError::new_err(format!(
                "logits start at an address that is no multiple of {} bytes; expected an aligned array",
                dtype.size()
            )));
        }
        Ok(Self { _owner: owner, data, dtype, rows, vocab_size, row_stride, id_stride, is_batch })
    }
}

/// Returns a slice; an empty one for any pointer if `length` is 0.
///
/// # Safety
/// As `std::slice::from_raw_parts`, unless `length` is 0.
unsafe fn slice<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if length == 0 {
        return &[];
    }
    // SAFETY: by the contract of this function.
    unsafe { std::slice::from_raw_parts(data, length) }
}

/// `DLManagedTensor` of <https://dmlc.github.io/dlpack/latest/c_api.html>.
#[repr(C)]
struct DlManagedTensor {
    tensor: DlTensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManagedTensor)>,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    type_code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}
