//! Logits in Python objects, seen where they lie: `NumPy` arrays, and anything else on the CPU that speaks `DLPack`.

use crate::error::value_error;
use bpe_llama_sampler::{Elements, Rows};
use numpy::npyffi::NPY_TYPES;
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::c_void;

const EXPECTED: &str = "expected float32, float16, bfloat16 or float64 in native byte order";

/// One or more rows of logits in memory that `owner` keeps alive.
pub(crate) struct Logits<'py> {
    _owner: Bound<'py, PyAny>,
    data: *const c_void,
    kind: Kind,
    rows: usize,
    vocab_size: usize,
    row_stride: isize,
    id_stride: isize,
    /// Whether the object was (V,) and not (B, V).
    pub(crate) single: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    F32,
    F64,
    F16,
    Bf16,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl<'py> Logits<'py> {
    /// Returns a view of an array's or tensor's numbers, without a copy.
    ///
    /// # Errors
    /// `TypeError` for another kind of object, device or element, `ValueError` for another shape.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.cast::<PyUntypedArray>() {
            return Self::of_array(array);
        }
        Self::of_dlpack(object)
    }

    /// Returns the rows for the core to read.
    pub(crate) fn rows(&self) -> PyResult<Rows<'_>> {
        let shape = (self.rows, self.vocab_size);
        let strides = (self.row_stride, self.id_stride);
        let (mut low, mut high) = (0isize, 0isize);
        for (count, stride) in [(shape.0, strides.0), (shape.1, strides.1)] {
            let reach = (count as isize - 1).max(0) * stride;
            low += reach.min(0);
            high += reach.max(0);
        }
        let length = if self.rows == 0 || self.vocab_size == 0 { 0 } else { (high - low + 1) as usize };
        // SAFETY: shape and strides are the producer's own description of one allocation that the owner, held by
        // `self`, keeps alive; `checked` made sure of the alignment. That nobody writes to it meanwhile is
        // the caller's duty, as for every NumPy function that releases the lock.
        let elements = unsafe {
            match self.kind {
                Kind::F32 => Elements::F32(slice(self.data.cast::<f32>().wrapping_offset(low), length)),
                Kind::F64 => Elements::F64(slice(self.data.cast::<f64>().wrapping_offset(low), length)),
                Kind::F16 => Elements::F16(slice(self.data.cast::<u16>().wrapping_offset(low), length)),
                Kind::Bf16 => Elements::Bf16(slice(self.data.cast::<u16>().wrapping_offset(low), length)),
            }
        };
        Rows::strided(elements, (-low) as usize, shape, strides).map_err(value_error)
    }

    fn of_array(array: &Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        let dtype = array.dtype();
        let number = dtype.num();
        let kind = if number == NPY_TYPES::NPY_FLOAT as i32 {
            Some(Kind::F32)
        } else if number == NPY_TYPES::NPY_DOUBLE as i32 {
            Some(Kind::F64)
        } else if number == NPY_TYPES::NPY_HALF as i32 {
            Some(Kind::F16)
        } else if dtype.itemsize() == 2 && dtype.getattr("name")?.eq("bfloat16")? {
            // NumPy has none of its own; the ml_dtypes package registers one.
            Some(Kind::Bf16)
        } else {
            None
        };
        let kind = kind
            .filter(|_| dtype.is_native_byteorder().unwrap_or(true))
            .ok_or_else(|| PyTypeError::new_err(format!("logits have dtype {dtype:?}; {EXPECTED}")))?;
        let size = kind.size() as isize;
        let strides = array.strides();
        if strides.iter().any(|stride| stride % size != 0) {
            return Err(PyValueError::new_err(format!(
                "logits have strides {strides:?}; expected multiples of {size} bytes"
            )));
        }
        // Beyond two the shape is refused; a list of any length would cost an allocation.
        let mut counted = [0; 2];
        for (counted, stride) in counted.iter_mut().zip(strides) {
            *counted = stride / size;
        }
        let strides = &counted[..strides.len().min(2)];
        // SAFETY: the pointer is a live array object's.
        let data = unsafe { (*array.as_array_ptr()).fields.data }.cast::<c_void>().cast_const();
        Self::checked(array.as_any().clone(), data, kind, array.shape(), strides)
    }

    fn of_dlpack(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let wrong =
            |what: String| PyTypeError::new_err(format!("logits are {what}; expected a NumPy array or a CPU tensor"));
        let kind = object.get_type().name()?;
        let Ok(export) = object.getattr(pyo3::intern!(py, "__dlpack__")) else {
            return Err(wrong(format!("a {kind}")));
        };
        // torch refuses to export what a gradient flows through; its values are wanted all the same.
        let detached =
            || object.call_method0(pyo3::intern!(py, "detach"))?.call_method0(pyo3::intern!(py, "__dlpack__"));
        let capsule = export.call0().or_else(|error| {
            detached().map_err(|_| wrong(format!("a {kind} that cannot be read ({})", error.value(py))))
        })?;
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let pointer = capsule.pointer_checked(Some(c"dltensor"))?.cast::<DlManagedTensor>();
        // SAFETY: a capsule of that name holds a DLManagedTensor, by the protocol; it lives until the capsule, which
        // is never renamed and so frees the tensor itself, is dropped.
        let tensor = unsafe { &pointer.as_ref().tensor };
        // Devices 1 and 3 are plain and page-locked memory of the host.
        if !matches!(tensor.device_type, 1 | 3) {
            return Err(wrong(format!("on device type {} of DLPack", tensor.device_type)));
        }
        let kind = match (tensor.type_code, tensor.bits, tensor.lanes) {
            (2, 32, 1) => Kind::F32,
            (2, 64, 1) => Kind::F64,
            (2, 16, 1) => Kind::F16,
            (4, 16, 1) => Kind::Bf16,
            _ => {
                let dtype = object.getattr("dtype").map_or_else(|_| "?".into(), |dtype| dtype.to_string());
                return Err(PyTypeError::new_err(format!("logits have dtype {dtype}; {EXPECTED}")));
            }
        };
        let dimensions = tensor.dimensions as usize;
        // SAFETY: the protocol promises arrays of that many dimensions; strides may be null for contiguous data.
        let shape: Vec<usize> =
            unsafe { slice(tensor.shape, dimensions) }.iter().map(|&count| count as usize).collect();
        let strides: Vec<isize> = if tensor.strides.is_null() {
            let mut strides = vec![1isize; dimensions];
            for axis in (1..dimensions).rev() {
                strides[axis - 1] = strides[axis] * shape[axis] as isize;
            }
            strides
        } else {
            // SAFETY: as above.
            unsafe { slice(tensor.strides, dimensions) }.iter().map(|&stride| stride as isize).collect()
        };
        let data = tensor.data.cast_const().wrapping_byte_add(tensor.byte_offset as usize);
        Self::checked(capsule.into_any(), data, kind, &shape, &strides)
    }

    fn checked(
        owner: Bound<'py, PyAny>,
        data: *const c_void,
        kind: Kind,
        shape: &[usize],
        strides: &[isize],
    ) -> PyResult<Self> {
        let (rows, vocab_size, row_stride, id_stride, single) = match (shape, strides) {
            (&[vocab_size], &[stride]) => (1, vocab_size, vocab_size as isize, stride, true),
            (&[rows, vocab_size], &[row_stride, stride]) => (rows, vocab_size, row_stride, stride, false),
            _ => {
                return Err(PyValueError::new_err(format!("logits have shape {shape:?}; expected (V,) or (B, V)")));
            }
        };
        if vocab_size == 0 {
            return Err(PyValueError::new_err(format!("logits have shape {shape:?}: row 0 is empty")));
        }
        if !(data as usize).is_multiple_of(kind.size()) {
            return Err(PyValueError::new_err(format!(
                "logits start at an address that is no multiple of {} bytes; expected an aligned array",
                kind.size()
            )));
        }
        Ok(Self { _owner: owner, data, kind, rows, vocab_size, row_stride, id_stride, single })
    }
}

/// Returns a slice that may be empty whatever its pointer.
///
/// # Safety
/// As `std::slice::from_raw_parts`, but for `length == 0`.
unsafe fn slice<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, length) }
}

/// `DLManagedTensor` of <https://dmlc.github.io/dlpack/latest/c_api.html>, as far as it is read here.
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
    dimensions: i32,
    type_code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}
